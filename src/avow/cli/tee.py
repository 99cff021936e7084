"""`avow tee`: which platforms are here, and why the others are not."""

from __future__ import annotations

import json

import click

from avow.cli.exit_codes import ExitCode


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def tee(as_json: bool) -> int:
    """List the platforms of this machine, and say why the others are absent.

    It only looks. It does not try to make evidence.
    """
    from avow.tee.platforms import Machine, detect

    machine = Machine()
    found = detect(machine)
    chosen = next((each.platform for each in found if each.present), None)
    auto = None if chosen == "simulated" else chosen
    if as_json:
        description = {
            "kernel": machine.release,
            "auto": auto,
            "platforms": [
                {"platform": each.platform, "present": each.present, "reason": each.reason}
                for each in found
            ],
        }
        click.echo(json.dumps(description, indent=2))
        return ExitCode.OK
    for each in found:
        state = "present" if each.present else "absent"
        click.echo(f"{each.platform:<10} {state:<8} {each.reason}")
    if auto is None:
        click.echo(
            "--tee auto would find no platform here; --tee simulated works, but protects nothing"
        )
    else:
        click.echo(f"--tee auto would take {auto}")
    return ExitCode.OK

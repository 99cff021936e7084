#!/usr/bin/env bash
# mqtt-packet (JavaScript) keeps User Properties by name, so a repeated name loses its place among the others.
# MQTT 5.0, section 3.3.2.3.7 [MQTT-3.3.2-18]: a server keeps their order when it forwards the message; the
# same name may come more than once. A broker that parses and generates with this library cannot.
# Exit code 0: still so. Any other: it has changed, or the script could not run; its last lines say which.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm init -y >/dev/null
npm install --silent --no-audit --no-fund mqtt-packet@9.0.2
cat >probe.js <<'NODE'
const packet = require("mqtt-packet");
const pair = (name, value) => [0x26, 0, 1, name.charCodeAt(0), 0, 1, value.charCodeAt(0)];
const body = [0, 1, 0x74, 21, ...pair("a", "1"), ...pair("b", "2"), ...pair("a", "3")];
const octets = Buffer.from([0x30, body.length, ...body]);
const order = (given) => [0, 7, 14].map((at) => String.fromCharCode(given[6 + at + 3], 0x3d, given[6 + at + 6])).join(" ");
let found;
const parser = packet.parser({ protocolVersion: 5 });
parser.on("packet", (one) => { found = one; });
parser.parse(octets);
const again = packet.generate(found, { protocolVersion: 5 });
console.log("mqtt-packet", require("mqtt-packet/package.json").version);
console.log("expected:", order(octets));
console.log("seen:    ", order(again), "from", JSON.stringify(found.properties));
process.exit(order(octets) === "a=1 b=2 a=3" && order(again) === "a=1 a=3 b=2" ? 0 : 1);
NODE
node probe.js

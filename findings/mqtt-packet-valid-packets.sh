#!/usr/bin/env bash
# mqtt-packet (JavaScript) reads CONNECT packets of MQTT 5 that it will not write, and refuses AUTH of length 0.
# MQTT 5.0, section 3.1.3.1: a client may send an empty client identifier, with Clean Start 0 too (3.1.1 had
# forbidden that; 5.0 has not); 3.1.2.9: a password without a user name is allowed; 3.15.2.1: AUTH with Reason
# Code 0x00 and no properties may have Remaining Length 0.
# Exit code 0: still so. Any other: it has changed, or the script could not run; its last lines say which.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm init -y >/dev/null
npm install --silent --no-audit --no-fund mqtt-packet@9.0.2
cat >probe.js <<'NODE'
const packet = require("mqtt-packet");
const five = { protocolVersion: 5 };

/** What the parser says of these octets, and whether the generator gives them back. */
function both(octets) {
  let read = "nothing";
  let found;
  const parser = packet.parser(five);
  parser.on("packet", (one) => { read = `read as ${one.cmd}`; found = one; });
  parser.on("error", (error) => { read = error.message; });
  parser.parse(Buffer.from(octets));
  let written = "not tried";
  if (found) {
    try {
      written = packet.generate(found, five).equals(Buffer.from(octets)) ? "same octets" : "other octets";
    } catch (error) {
      written = error.message;
    }
  }
  return `${read}; written: ${written}`;
}
const connect = (flags, ...payload) => {
  const body = [0, 4, ...Buffer.from("MQTT"), 5, flags, 0, 60, 0, ...payload];
  return [0x10, body.length, ...body];
};
console.log("mqtt-packet", require("mqtt-packet/package.json").version);
console.log("expected: read, and the same octets written; AUTH of length 0 read as auth");
const seen = [
  ["empty client identifier, Clean Start 0", both(connect(0x00, 0, 0))],
  ["password alone", both(connect(0x42, 0, 1, 0x63, 0, 2, 0x70, 0x77))],
  ["AUTH of length 0", both([0xf0, 0])],
];
for (const [name, what] of seen) console.log(`${name}: ${what}`);
const still = seen[0][1].startsWith("read as connect; written: clientId must") &&
  seen[1][1].startsWith("read as connect; written: Username is required") && seen[2][1].startsWith("Invalid auth");
process.exit(still ? 0 : 1);
NODE
node probe.js

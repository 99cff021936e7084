#!/usr/bin/env bash
# mqtt-pattern (JavaScript) does not let "+" match an empty topic level, though a broker delivers on such a filter.
# MQTT 5.0, section 4.7.1.3 and 4.7.3: a topic level may have zero length, and "/finance" matches "+/+" and "/+".
# Exit code 0: still so. Any other: it has changed, or the script could not run; its last lines say which.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm init -y >/dev/null
npm install --silent --no-audit --no-fund mqtt-pattern@2.1.1 mqtt-match@3.0.0
cat >probe.js <<'NODE'
const { matches } = require("mqtt-pattern");
const loaded = require("mqtt-match");
const other = loaded.default ?? loaded;
const cases = [["+/+", "/finance"], ["/+", "/finance"], ["a/+/b", "a//b"], ["a/+", "a/"]];
console.log("mqtt-pattern", require("mqtt-pattern/package.json").version);
console.log("expected:    ", JSON.stringify([true, true, true, true]));
const seen = JSON.stringify(cases.map(([filter, topic]) => matches(filter, topic)));
const peer = JSON.stringify(cases.map(([filter, topic]) => other(filter, topic)));
console.log("mqtt-pattern:", seen);
console.log("mqtt-match:  ", peer);
process.exit(seen === "[false,true,false,false]" && peer === "[true,true,true,true]" ? 0 : 1);
NODE
node probe.js

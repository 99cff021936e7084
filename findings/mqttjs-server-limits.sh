#!/usr/bin/env bash
# MQTT.js does not keep to three limits in CONNACK: Receive Maximum, Maximum QoS, Server Keep Alive of 0.
# MQTT 5.0, section 3.3.4 [MQTT-3.3.4-7]: no more than Receive Maximum unacknowledged messages of QoS 1 and 2;
# 3.2.2.3.4 [MQTT-3.2.2-11]: no PUBLISH above Maximum QoS; 3.2.2.3.14 [MQTT-3.2.2-21]: the client uses the
# Server Keep Alive in place of its own, and 0 turns the mechanism off (section 3.1.2.10).
# Exit code 0: still so. Any other: it has changed, or the script could not run; its last lines say which.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm init -y >/dev/null
npm install --silent --no-audit --no-fund mqtt@5.16.0
cat >probe.js <<'NODE'
const mqtt = require("mqtt");
const net = require("net");

/** Kinds of packets (first bytes) that a server gets which answers CONNECT with these properties and then only pings. */
function kinds(properties, milliseconds, options, act) {
  return new Promise((resolve) => {
    const seen = [];
    const server = net.createServer((socket) => {
      let held = Buffer.alloc(0);
      socket.on("error", () => {});
      socket.on("data", (data) => {
        held = Buffer.concat([held, data]);
        while (held.length >= 2 && held.length >= 2 + held[1]) {
          const kind = held[0];
          held = held.subarray(2 + held[1]);
          seen.push(kind);
          if (kind === 0x10) {
            socket.write(Buffer.from([0x20, 3 + properties.length, 0, 0, properties.length, ...properties]));
          } else if (kind === 0xc0) {
            socket.write(Buffer.from([0xd0, 0]));
          }
        }
      });
      setTimeout(() => {
        socket.destroy();
        server.close();
        resolve(seen.slice(1));
      }, milliseconds);
    });
    server.listen(0, "127.0.0.1", () => {
      const client = mqtt.connect({
        host: "127.0.0.1", port: server.address().port, protocolVersion: 5, clientId: "c", reconnectPeriod: 0, ...options,
      });
      client.on("connect", () => act(client));
      client.on("close", () => client.end(true));
      client.on("error", () => {});
    });
  });
}

(async () => {
  console.log("MQTT.js", require("mqtt/package.json").version);
  console.log("expected: 1 PUBLISH at once; no PUBLISH of QoS 2; no PINGREQ");
  const window = await kinds([0x21, 0, 1], 1000, {}, (client) => {
    for (let number = 0; number < 4; number++) client.publish("t", String(number), { qos: 1 }, () => {});
  });
  const quality = await kinds([0x24, 0], 1000, {}, (client) => client.publish("t", "x", { qos: 2 }, () => {}));
  const alive = await kinds([0x13, 0, 0], 3500, { keepalive: 1 }, () => {});
  const pings = alive.filter((kind) => kind === 0xc0).length;
  const publishes = window.filter((kind) => kind === 0x32).length;
  console.log(`Receive Maximum 1: ${publishes} PUBLISH at once`);
  console.log(`Maximum QoS 0: ${quality.includes(0x34) ? "a PUBLISH of QoS 2" : "none"}`);
  console.log(`Server Keep Alive 0: ${pings > 1 ? "PINGREQ goes on" : "no PINGREQ"}`);
  process.exit(publishes === 4 && quality.includes(0x34) && pings > 1 ? 0 : 1);
})();
NODE
node probe.js

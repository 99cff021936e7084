#!/usr/bin/env bash
# aedes (JavaScript broker) hands a message to a client with overlapping subscriptions at the lower QoS of them,
# whichever was taken first.
# MQTT 3.1.1, section 3.3.5 [MQTT-3.3.5-1]: with overlapping subscriptions the message comes with the maximum QoS
# of all that match.
# Exit code 0: still so. Any other: it has changed, or the script could not run; its last lines say which.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm init -y >/dev/null
npm install --silent --no-audit --no-fund aedes@1.2.0
cat >probe.js <<'NODE'
const net = require("net");
const { Aedes } = require("aedes");

const text = (given) => [given.length >> 8, given.length & 255, ...Buffer.from(given)];
const packet = (kind, ...body) => Buffer.from([kind, body.length, ...body]);

/** The QoS of each PUBLISH that comes back to a client which takes these filters in turn and then publishes to a/b. */
function delivered(port, filters) {
  return new Promise((resolve) => {
    const socket = net.connect(port, "127.0.0.1");
    const waiting = filters.map(([filter, qos], at) => packet(0x82, 0, at + 1, ...text(filter), qos));
    const found = [];
    let held = Buffer.alloc(0);
    const next = () => {
      socket.write(waiting.length ? waiting.shift() : packet(0x32, ...text("a/b"), 0, 9, 0x78));
    };
    socket.write(packet(0x10, ...text("MQTT"), 4, 2, 0, 60, ...text("c")));
    socket.on("data", (data) => {
      held = Buffer.concat([held, data]);
      while (held.length >= 2 && held.length >= 2 + held[1]) {
        const kind = held[0];
        held = held.subarray(2 + held[1]);
        if (kind === 0x20 || kind === 0x90) next();
        if ((kind & 0xf0) === 0x30) found.push((kind >> 1) & 3);
      }
    });
    setTimeout(() => { socket.destroy(); resolve(found); }, 1000);
  });
}

(async () => {
  const broker = await Aedes.createBroker();
  const server = net.createServer(broker.handle);
  server.listen(0, "127.0.0.1", async () => {
    const port = server.address().port;
    console.log("aedes", require("./node_modules/aedes/package.json").version);
    console.log("expected: QoS 1 among what comes, in each order");
    const low = await delivered(port, [["a/#", 0], ["a/b", 1]]);
    const high = await delivered(port, [["a/b", 1], ["a/#", 0]]);
    const alone = await delivered(port, [["a/b", 1]]);
    console.log("a/# with QoS 0, then a/b with QoS 1:", low);
    console.log("a/b with QoS 1, then a/# with QoS 0:", high);
    console.log("a/b with QoS 1 alone:", alone);
    process.exit(alone.includes(1) && (!low.includes(1) || !high.includes(1)) ? 0 : 1);
  });
})();
NODE
node probe.js

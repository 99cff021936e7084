#!/usr/bin/env bash
# @auth0/cose finds the signature of a COSE_Sign1 wrong when its protected header is the empty map in a byte string
# (h'a0'); cose-js takes it, and both take the same signature with the empty byte string (h'').
# RFC 9052, section 3: recipients accept both a zero-length byte string and an encoded zero-length map as empty
# protected header; 4.4: the Sig_structure has a zero-length byte string for either. EAT and CoRIM are signed so.
# Exit code 0: still so. Any other: it has changed, or the script could not run; its last lines say which.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm init -y >/dev/null
npm install --silent --no-audit --no-fund @auth0/cose@1.0.2 cose-js@0.9.0
cat >probe.mjs <<'NODE'
import crypto from "node:crypto";
import { createRequire } from "node:module";
import { Sign1 } from "@auth0/cose";

const require = createRequire(import.meta.url);
const other = require("cose-js");
const { publicKey, privateKey } = crypto.generateKeyPairSync("ec", { namedCurve: "P-256" });
const jwk = publicKey.export({ format: "jwk" });
const key = await crypto.webcrypto.subtle.importKey("jwk", jwk, { name: "ECDSA", namedCurve: "P-256" }, true, ["verify"]);
const payload = Buffer.from("a1016178", "hex"); // {1: "x"}
// ["Signature1", h'', h'', payload]
const signed = Buffer.concat([Buffer.from([0x84, 0x6a]), Buffer.from("Signature1"), Buffer.from([0x40, 0x40, 0x44]), payload]);
const signature = crypto.sign("sha256", signed, { key: privateKey, dsaEncoding: "ieee-p1363" });

/** 18([protected, {1: -7}, payload, signature]) */
const message = (header) =>
  Buffer.concat([Buffer.from([0xd2, 0x84]), header, Buffer.from("a1012644", "hex"), payload, Buffer.from([0x58, 0x40]), signature]);
const said = async (verify) => {
  try {
    await verify();
    return "verified";
  } catch (error) {
    return error.message;
  }
};
const seen = [];
console.log("@auth0/cose", require("@auth0/cose/package.json").version, "cose-js", require("cose-js/package.json").version);
console.log("expected: verified, four times");
for (const [name, header] of [["h''", [0x40]], ["h'a0'", [0x41, 0xa0]]]) {
  const octets = message(Buffer.from(header));
  const both = [
    await said(() => Sign1.decode(octets).verify(key)),
    await said(() => other.sign.verify(octets, { key: { x: Buffer.from(jwk.x, "base64url"), y: Buffer.from(jwk.y, "base64url") } })),
  ];
  seen.push(...both);
  console.log(`${name}: @auth0/cose: ${both[0]}; cose-js: ${both[1]}`);
}
process.exit(seen.join() === "verified,verified,signature verification failed,verified" ? 0 : 1);
NODE
node probe.mjs

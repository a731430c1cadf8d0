// A person whose client is matrix-js-sdk with its Rust crypto. Reads commands, one JSON object a line, from standard
// input, and answers each with one line; messages and verifications are told of as they come.
import { createInterface } from "node:readline";

import * as sdk from "matrix-js-sdk";
import {
  AllDevicesIsolationMode,
  OnlySignedDevicesIsolationMode,
} from "matrix-js-sdk/lib/crypto-api/index.js";
import { logger } from "matrix-js-sdk/lib/logger.js";

// matrix-js-sdk wants Node.js 22 for this alone.
Promise.withResolvers ??= function () {
  let resolve, reject;
  const promise = new this((...both) => ([resolve, reject] = both));
  return { promise, resolve, reject };
};

logger.setLevel(process.env.JS_PERSON_DEBUG ? "debug" : "silent");
for (const level of ["log", "info", "warn", "debug", "trace", "error"]) {
  console[level] = (...words) => process.env.JS_PERSON_DEBUG && process.stderr.write(words.join(" ") + "\n");
}

const tell = (value) => process.stdout.write(JSON.stringify(value) + "\n");
const told = new Set();
let client;
let verifier;

async function report(event) {
  if (event.getType() !== "m.room.message" || event.getSender() === client.getUserId() || told.has(event.getId())) return;
  const encrypted = event.isEncrypted();
  if (encrypted && (event.isBeingDecrypted() || event.isDecryptionFailure())) return;
  told.add(event.getId());
  const info = encrypted ? await client.getCrypto().getEncryptionInfoForEvent(event) : null;
  tell({
    heard: event.getContent().body,
    room: event.getRoomId(),
    sender: event.getSender(),
    event_id: event.getId(),
    msgtype: event.getContent().msgtype,
    encrypted,
    shield: info?.shieldColour ?? null,
    reason: info?.shieldReason ?? null,
  });
}

const commands = {
  async login({ url, user, password, only_signed: onlySigned }) {
    const login = await sdk.createClient({ baseUrl: url }).loginRequest({
      type: "m.login.password",
      identifier: { type: "m.id.user", user },
      password,
    });
    client = sdk.createClient({
      baseUrl: url,
      userId: login.user_id,
      deviceId: login.device_id,
      accessToken: login.access_token,
    });
    await client.initRustCrypto({ useIndexedDB: false });
    const crypto = client.getCrypto();
    crypto.setDeviceIsolationMode(onlySigned ? new OnlySignedDevicesIsolationMode() : new AllDevicesIsolationMode(false));
    if (onlySigned) {
      await crypto.bootstrapCrossSigning({
        setupNewCrossSigning: true,
        authUploadDeviceSigningKeys: (upload) =>
          upload({ type: "m.login.password", identifier: { type: "m.id.user", user }, password }),
      });
    }
    client.on(sdk.RoomEvent.Timeline, report);
    client.on(sdk.MatrixEventEvent.Decrypted, report);
    const prepared = new Promise((resolve) =>
      client.on(sdk.ClientEvent.Sync, (state) => state === "PREPARED" && resolve()),
    );
    await client.startClient({ pollTimeout: 1000 });
    await prepared;
    return { user_id: login.user_id, device_id: login.device_id };
  },
  async create({ invite }) {
    const { room_id: room } = await client.createRoom({
      invite,
      preset: "private_chat",
      initial_state: [
        { type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } },
      ],
    });
    return { room };
  },
  async members({ room }) {
    const members = client.getRoom(room)?.getJoinedMembers() ?? [];
    return { joined: members.map((member) => member.userId) };
  },
  async say({ room, text }) {
    return { event_id: (await client.sendTextMessage(room, text)).event_id };
  },
  async trust({ user, device }) {
    const crypto = client.getCrypto();
    const devices = (await crypto.getUserDeviceInfo([user], true)).get(user);
    const status = await crypto.getDeviceVerificationStatus(user, device);
    const person = await crypto.getUserVerificationStatus(user);
    return {
      devices: [...(devices?.keys() ?? [])],
      signed_by_owner: status?.signedByOwner ?? null,
      device_verified: status?.isVerified() ?? null,
      user_verified: person.isCrossSigningVerified(),
    };
  },
  async verify({ user, device }) {
    const request = await client.getCrypto().requestDeviceVerification(user, device);
    await new Promise((resolve, reject) => {
      const changed = () => {
        if (request.phase === 3) resolve(); // ready
        if (request.phase === 5) reject(new Error(`cancelled: ${request.cancellationCode}`));
      };
      request.on("change", changed);
      changed();
    });
    verifier = await request.startVerification("m.sas.v1");
    const shown = new Promise((resolve) => verifier.on("show_sas", resolve));
    verifier.done = verifier.verify();
    verifier.shown = await shown;
    return { emoji: verifier.shown.sas.emoji, numbers: verifier.shown.sas.decimal };
  },
  async confirm() {
    await verifier.shown.confirm();
    await verifier.done;
    return {};
  },
  async stop() {
    client?.stopClient();
    setTimeout(() => process.exit(0), 10);
    return {};
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...options } = JSON.parse(line);
  try {
    tell({ answer: await commands[command](options) });
  } catch (error) {
    tell({ failure: String(error?.stack ?? error) });
  }
}
process.exit(0);

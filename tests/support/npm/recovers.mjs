// The packed client with a real server, whose address is the argument. `public.room` keeps history.
import assert from "node:assert/strict";
import { WebSocket } from "ws";
import { RealtimeConnection } from "django-channels-realtime";
import { once } from "./server.mjs";

const [base] = process.argv.slice(2);
const GROUP = "public.room";
const sockets = [];
class Breakable extends WebSocket {
  constructor(...words) {
    super(...words);
    sockets.push(this);
  }
}

/** Two readers: one joins by a frame, the other one is a member by its address. */
const options = { WebSocket: Breakable, backoffBase: 0.05 };
const readers = [`${base}/ws/`, `${base}/ws/${GROUP}/`].map((url) => new RealtimeConnection(url, options));
const seen = readers.map(() => []);
readers.forEach((reader, number) => {
  reader.addEventListener("message", ({ detail }) => seen[number].push([detail.data, detail.recovered === true]));
  reader.addEventListener("reset", ({ detail }) => seen[number].push(detail));
  reader.connect();
});
// Each is told of the other one, which has not logged in either.
const seeing = readers.map((reader) => once(reader, "presence", ({ anonymous }) => anonymous === 2));
await Promise.all(readers.map((reader) => reader.join(GROUP, { presence: true })));
for (const { users, total } of await Promise.all(seeing)) assert.deepEqual([users, total], [[], 0]);

const writer = new RealtimeConnection(`${base}/ws/`, { WebSocket, queue: true });
writer.connect();
const publish = (data, id) => writer.publish(GROUP, data, { id });
const first = await publish(1, "once");
assert.deepEqual((await publish(1, "once")).offset, first.offset);
assert.equal((await writer.presence(GROUP)).anonymous, 2);
while (seen.some((each) => each.length < 1)) await new Promise((resolve) => setTimeout(resolve, 10));

for (let round = 0; round < 3; round += 1) {
  const recovered = readers.map((reader) => once(reader, "recovered"));
  // Without a close frame. Each reader is back within 0.05 s, while messages are published.
  sockets.splice(0).forEach((socket) => socket.terminate());
  for (let number = 0; number < 20; number += 1) await publish([round, number]);
  await Promise.all(recovered);
}
const last = await publish("last");
while (seen.some((each) => each.at(-1)[0] !== "last")) await new Promise((resolve) => setTimeout(resolve, 10));

const expected = [1, ...[0, 1, 2].flatMap((round) => Array.from({ length: 20 }, (_, number) => [round, number])), "last"];
for (const each of seen) assert.deepEqual(each.map(([data]) => data), expected);
for (const reader of readers) assert.equal(reader.position(GROUP).offset, last.offset);
for (const connection of [...readers, writer]) connection.close();
console.log("done");

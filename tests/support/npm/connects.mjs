// The packed client in Node, with the package `ws` and without anything of a browser.
import assert from "node:assert/strict";
import { WebSocket } from "ws";
import { RealtimeConnection, RealtimeError } from "django-channels-realtime";
import { Server, once } from "./server.mjs";

const server = new Server();
const port = await server.start();
const options = { WebSocket, backoffBase: 0.05, queue: true, remember: true };
const connection = new RealtimeConnection(`http://127.0.0.1:${port}/ws/`, options);
assert.equal(connection.url, `ws://127.0.0.1:${port}/ws/`);
const seen = [];
connection.addEventListener("message", ({ detail }) => seen.push([detail.data, detail.recovered === true]));

connection.connect();
await connection.join("public.a");
assert.equal((await connection.publish("public.a", "one")).offset, 1);
assert.ok((await connection.publish("public.a", "two")).offset === 2);

// The server goes away and comes back. What was published in the meantime is recovered.
server.stop();
await once(connection, "state", ({ state }) => state === "waiting");
server.histories.get("public.a").push("three");
// Attempts fail in between, and the program goes on.
await once(connection, "state", ({ previous }) => previous === "connecting");
const queued = connection.publish("public.a", "four");
const recovered = once(connection, "recovered");
await server.start(port);
assert.equal((await recovered).messages, 1);
assert.equal((await queued).offset, 4);
assert.deepEqual(seen, [["one", false], ["two", false], ["three", true], ["four", false]]);
assert.deepEqual(server.joins, [null, { epoch: "e", offset: 2 }]);
assert.deepEqual(connection.position("public.a"), { epoch: "e", offset: 4 });

// A socket that is closed before it is open ends nothing but itself.
connection.close();
connection.connect();
connection.close();
await assert.rejects(connection.publish("public.a", 1), (error) => error instanceof RealtimeError && error.code === "not_connected");
server.stop();
// Nothing keeps the program alive now.
console.log("done");

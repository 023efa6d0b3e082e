// The hook of docs/howto/client/useGroup.ts in React's own test renderer, with the packed client.
import assert from "node:assert/strict";
import { StrictMode, act, createElement } from "react";
import renderer from "react-test-renderer";
import { WebSocket } from "ws";
import { RealtimeConnection } from "django-channels-realtime";
import { useGroup } from "./built/useGroup.js";
import { Server, once } from "./server.mjs";

globalThis.IS_REACT_ACT_ENVIRONMENT = true;
const errors = [];
// The test renderer says in each use that it is deprecated.
console.error = (...words) => String(words[0]).includes("react-test-renderer") || errors.push(words);

const GROUP = "public.orders";
const server = new Server();
const connection = new RealtimeConnection(`ws://127.0.0.1:${await server.start()}/`, { WebSocket, backoffBase: 0.05 });
let loads = 0;
const load = async () => {
  loads += 1;
  return [{ id: "0", text: "loaded" }, { id: "1", text: "loaded" }];
};

function Orders() {
  const orders = useGroup(connection, GROUP, load);
  return [...orders.values()].map(({ id, text }) => createElement("li", { key: id }, `${id} ${text}`));
}

const shown = () => [root.toJSON() ?? []].flat().map(({ children }) => children[0]);
const rendering = (step) => act(async () => void (await step()));

let root;
connection.connect();
await rendering(() => {
  root = renderer.create(createElement(StrictMode, null, createElement(Orders)));
});
const settled = async (expected) => {
  const deadline = Date.now() + 10_000;
  while (JSON.stringify(shown()) !== JSON.stringify(expected) && Date.now() < deadline) {
    await rendering(() => new Promise((resolve) => setTimeout(resolve, 10)));
  }
  assert.deepEqual(shown(), expected);
};
await settled(["0 loaded", "1 loaded"]);

// A message adds or replaces.
server.publish(GROUP, { id: "1", text: "changed" });
server.publish(GROUP, { id: "2", text: "new" });
await settled(["0 loaded", "1 changed", "2 new"]);

// What was missed is shown without a load.
const before = loads;
server.drop();
server.histories.get(GROUP).push({ id: "3", text: "missed" });
await settled(["0 loaded", "1 changed", "2 new", "3 missed"]);
assert.equal(loads, before);

// After a reset, only the loaded state counts.
for (const socket of server.server.clients) {
  socket.send(JSON.stringify({ type: "reset", group: GROUP, epoch: "f", offset: 0 }));
}
await settled(["0 loaded", "1 loaded"]);

// A user who may not be in the group any more sees nothing of it.
for (const socket of server.server.clients) {
  socket.send(JSON.stringify({ type: "removed", group: GROUP, reason: "forbidden" }));
}
await settled([]);
await connection.join(GROUP);

const left = once(connection, "groups", ({ groups }) => !groups.includes(GROUP));
await rendering(() => root.unmount());
await left;
connection.close();
server.stop();
assert.deepEqual(errors, []);
console.log("done");

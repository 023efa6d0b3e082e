// Compiled by TypeScript with `strict`, never run: what an application may write, and what it may not.
import { WebSocket as NodeWebSocket } from "ws";
import {
  RealtimeConnection,
  RealtimeError,
  SUBPROTOCOL,
  mayReconnect,
  type Message,
  type Options,
  type Position,
  type Presence,
  type Present,
  type State,
} from "django-channels-realtime";

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
function same<A, B>(_: Same<A, B>): void {}

const options: Options = { remember: true, queue: { size: 10 }, backoffCap: 60 };
const connection = new RealtimeConnection("/ws/", options);
new RealtimeConnection(new URL("wss://example.com/ws/"), { queue: true, remember: "chat" });
new RealtimeConnection();
new RealtimeConnection("/ws/", { WebSocket });
new RealtimeConnection("/ws/", { WebSocket: NodeWebSocket });
new RealtimeConnection("/ws/", { ticket: async () => "text" });
new RealtimeConnection("/ws/", { ticket: () => "text" });

connection.addEventListener("message", function ({ detail }) {
  same<typeof detail, Message>(true);
  same<typeof detail.data, unknown>(true);
  same<typeof this, RealtimeConnection>(true);
  const order = detail as Message<{ id: number }>;
  order.data.id.toFixed();
  if (detail.recovered) console.log(detail.group, detail.offset ?? 0);
});
connection.addEventListener("reset", ({ detail }) => {
  same<typeof detail.reason, "refused" | "reset">(true);
  same<typeof detail.position, Position | null>(true);
});
connection.addEventListener("recovered", ({ detail: { group, messages } }) => console.log(group, messages.toFixed()));
connection.addEventListener("presence", ({ detail: { group, users, joined, left, anonymous, total } }) => {
  same<[typeof users, typeof joined, typeof left][number], readonly string[]>(true);
  console.log(group, users.includes("7"), (anonymous + total).toFixed());
});
connection.addEventListener("notification", ({ detail }) => same<typeof detail.data, unknown>(true));
connection.addEventListener("removed", ({ detail: { group, reason } }) => same<typeof group | typeof reason, string>(true));
connection.addEventListener("refresh", ({ detail }) => console.log(detail.within.toFixed()));
connection.addEventListener("state", ({ detail }) => same<typeof detail.state, State>(true), { once: true });
connection.addEventListener("error", { handleEvent: ({ detail }) => console.log(detail.code) });
connection.addEventListener("of another library", (event: Event) => console.log(event.type));
connection.removeEventListener("message", null);

async function use(): Promise<void> {
  const { recovered } = await connection.join("public.a", { since: connection.position("public.b") });
  same<typeof recovered, boolean | undefined>(true);
  const { presence } = await connection.join("public.b", { presence: true });
  same<typeof presence, Present | undefined>(true);
  const present: Presence = await connection.presence("public.b");
  console.log(presence?.users.length, present.users, present.anonymous.toFixed(), present.total.toFixed());
  const published = await connection.publish("public.a", { n: 1 }, { id: "order-7" });
  same<typeof published.offset, number | undefined>(true);
  const seconds: number = await connection.check();
  const left: "left" = (await connection.leave("public.a")).type;
  console.log(seconds, left, mayReconnect(null), connection.lastClose?.code ?? SUBPROTOCOL);
}
use().catch((error: unknown) => {
  if (error instanceof RealtimeError && error.code === "queue_full") console.log(error.message);
});
void new RealtimeError("a code of the application", "text");

// @ts-expect-error - there is no such option
new RealtimeConnection("/ws/", { remembers: true });
// @ts-expect-error - a ticket is a text
new RealtimeConnection("/ws/", { ticket: async () => ({ ticket: "text" }) });
// @ts-expect-error - offsets are numbers
void connection.join("public.a", { since: { epoch: "e", offset: "1" } });
// @ts-expect-error - presence is asked for, or not
void connection.join("public.a", { presence: "all" });
// @ts-expect-error - a change is of several users
connection.addEventListener("presence", ({ detail }) => detail.user);
// @ts-expect-error - the state is read, not set
connection.state = "open";
// @ts-expect-error - a message event has no field of this name
connection.addEventListener("message", ({ detail }) => detail.channel);
// @ts-expect-error - data is unknown until the application says what it is
connection.addEventListener("message", ({ detail }) => detail.data.id);

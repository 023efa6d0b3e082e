// Compiled, never run: the code of the client has the types that are declared beside it.
import type * as declared from "django-channels-realtime";
import * as written from "./client.js";

/** The code calls each of these answers a frame, and its listeners are those of every EventTarget. */
type Answered = "join" | "leave" | "publish" | "presence";
type Listened = "addEventListener" | "removeEventListener";

const functions: Pick<typeof declared, "SUBPROTOCOL" | "mayReconnect" | "RealtimeError"> = written;
const create = (
  url: string | URL | undefined,
  options: declared.Options,
): Omit<declared.RealtimeConnection, Answered | Listened> => new written.RealtimeConnection(url, options);
const accepted = (
  ...[join, leave, publish, presence]: [
    Parameters<declared.RealtimeConnection["join"]>,
    Parameters<declared.RealtimeConnection["leave"]>,
    Parameters<declared.RealtimeConnection["publish"]>,
    Parameters<declared.RealtimeConnection["presence"]>,
  ]
): [...{ [K in Answered]: Parameters<written.RealtimeConnection[K]> }[Answered][]] => [join, leave, publish, presence];

// Neither has a public name that the other lacks.
const exported: Record<keyof typeof declared, unknown> = written;
const exportedToo: Record<keyof typeof written, unknown> = {} as typeof declared;
const members: Record<keyof written.RealtimeConnection, unknown> = {} as declared.RealtimeConnection;
void [functions, create, accepted, exported, exportedToo, members];

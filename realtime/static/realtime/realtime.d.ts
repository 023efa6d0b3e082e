/**
 * Types of the browser client. The comments in `realtime.js` say more; docs/howto/use-the-client.md shows its use.
 */

/** The subprotocol that the client offers. */
export const SUBPROTOCOL: "realtime.v1";

/** `closed`: nothing happens until connect(). `waiting`: a reconnect is due at `retryAt`. */
export type State = "closed" | "connecting" | "open" | "waiting";

/** The place of a message in the history of its group. Offset 0 is before the first message. */
export interface Position {
  epoch: string;
  offset: number;
}

/** How the last socket ended. */
export interface Close {
  /** The close code; null if the client ended the socket itself. */
  readonly code: number | null;
  /** The reason of the server, or `silent`, `never_opened`, `no_ticket`, `closed_here`, or "". */
  readonly reason: string;
  /** `Date.now()` */
  readonly at: number;
}

/** A message of a group. */
export interface Message<Data = unknown> {
  readonly type: "message";
  readonly group: string;
  readonly data: Data;
  /** The user who published; null for an anonymous client; absent if code of the server published. */
  readonly from?: string | null;
  /** The position, if the group keeps history. */
  readonly offset?: number;
  readonly epoch?: string;
  /** True if the message was missed when it was published, and sent later. */
  readonly recovered?: true;
}

/** The users in a group, once each, however many connections they have. */
export interface Present {
  /** The ids of the users in the order in which they came, at most the first 1,000. */
  readonly users: readonly string[];
  /** The number of anonymous connections. */
  readonly anonymous: number;
  /** The number of all users. */
  readonly total: number;
}

/** The answer to the question who is in a group. */
export interface Presence extends Present {
  readonly type: "presence";
  readonly group: string;
  readonly ref?: number | string;
}

/** The answer to a join. */
export interface Joined {
  readonly type: "joined";
  readonly group: string;
  readonly ref?: number | string;
  /** The latest message of the group at that moment, if the group keeps history. */
  readonly epoch?: string;
  readonly offset?: number;
  /** Whether everything after `since` follows. Absent if the join had no `since`. */
  readonly recovered?: boolean;
  /** Who is in the group, if the join asked. */
  readonly presence?: Present;
}

/** The answer to a leave. */
export interface Left {
  readonly type: "left";
  readonly group: string;
  readonly ref?: number | string;
}

/** The answer to a publish. */
export interface Published {
  readonly type: "published";
  readonly group: string;
  readonly ref?: number | string;
  readonly epoch?: string;
  readonly offset?: number;
}

/** The events of a connection by their names. */
export interface RealtimeEventMap {
  state: CustomEvent<{ readonly state: State; readonly previous: State }>;
  message: CustomEvent<Message>;
  /** Everything that was missed in this group has been delivered. */
  recovered: CustomEvent<{ readonly group: string; readonly messages: number }>;
  /** Messages of this group are lost to this client: load the state again. */
  reset: CustomEvent<{
    readonly group: string;
    readonly reason: "refused" | "reset";
    readonly position: Position | null;
  }>;
  /** Who is in a group that was joined with `presence`; also after a reconnect, if something is different then. */
  presence: CustomEvent<
    Present & {
      readonly group: string;
      /** The users of this list who were not in that of the last event. */
      readonly joined: readonly string[];
      /** The users of the list of the last event who are not in this one. */
      readonly left: readonly string[];
    }
  >;
  /** Data that server code sent to the user of this connection. */
  notification: CustomEvent<{ readonly data: unknown }>;
  groups: CustomEvent<{ readonly groups: readonly string[] }>;
  /**
   * The server removed this connection from a group. The client does not join it again by itself. The reason
   * `forbidden` says that the user may not be in it any more.
   */
  removed: CustomEvent<{ readonly group: string; readonly reason: string }>;
  /** The right to this connection ends in `within` seconds. The client is already renewing it. */
  refresh: CustomEvent<{ readonly within: number }>;
  ping: CustomEvent<{ readonly n: number }>;
  goodbye: CustomEvent<{ readonly reason: string; readonly reconnect: boolean; readonly retry_after?: number }>;
  /** An error that no promise reports. */
  error: CustomEvent<{
    readonly code: string;
    readonly detail: string;
    readonly ref?: number | string;
    readonly group?: string;
  }>;
}

/** What the client uses of a WebSocket: that of browsers, of Node, and of the package `ws`. */
export interface WebSocketLike {
  readonly readyState: number;
  onmessage: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  send(text: string): void;
  close(): void;
}

/** Durations in seconds. */
export interface Options {
  /** The first reconnect waits between 0 and this (1). */
  backoffBase?: number;
  /** The longest back-off (30); 1.5 while the browser says that there is no network. */
  backoffCap?: number;
  /** From connect() until the server's welcome (30). */
  connectTimeout?: number;
  /** If the server does not answer a question within this time, the socket is dead (5). */
  answerTimeout?: number;
  /** Keeps positions in `sessionStorage`; a string names them, if two connections of a page have the same URL. */
  remember?: boolean | string;
  /** Lets publishes wait for the connection: at most `size` (100), each at most `ttl` seconds (60). */
  queue?: boolean | { size?: number; ttl?: number };
  /**
   * Returns a new ticket. It is called before each attempt to connect, and when the server asks for a refresh. If it
   * rejects, the client tries again later; if the error has a true property `stop`, the client closes.
   */
  ticket?: () => string | Promise<string>;
  /** The constructor of sockets. */
  WebSocket?: new (url: string, protocols: string[]) => WebSocketLike;
}

/** The codes of a RealtimeError. The server may have others. */
export type ErrorCode =
  | "bad_frame"
  | "bad_group"
  | "forbidden"
  | "internal"
  | "no_presence"
  | "too_many_groups"
  | "bad_ticket"
  | "not_joined"
  | "rate_limited"
  | "unknown_type"
  | "closed"
  | "disconnected"
  | "expired"
  | "left"
  | "not_connected"
  | "queue_full";

/** A command that the server refused or that could not be delivered. */
export class RealtimeError extends Error {
  constructor(code: ErrorCode | (string & {}), message: string);
  readonly code: ErrorCode | (string & {});
}

/** Whether a client may reconnect after a close with this code. */
export function mayReconnect(code: number | null): boolean;

type Listener<This, E> = ((this: This, event: E) => unknown) | { handleEvent(event: E): unknown };

/** A connection that reconnects: it outlives any number of sockets. */
export class RealtimeConnection extends EventTarget {
  constructor(url?: string | URL, options?: Options);

  readonly url: string;
  readonly state: State;
  /** The server's name for this connection while it is open. */
  readonly id: string | null;
  /** The groups that the server has confirmed on this socket. */
  readonly groups: string[];
  readonly lastClose: Close | null;
  /** The time of the next attempt while the state is `waiting`. */
  readonly retryAt: number | null;
  /** The time at which the last frame arrived on this socket. */
  readonly heardAt: number | null;
  /** The longest silence of the server that is allowed, in seconds. */
  readonly maxSilence: number;
  /** The last measured round trip in seconds. */
  readonly roundTrip: number | null;

  /** The position of the last message of a group that was delivered. */
  position(group: string): Position | null;
  /** Connects; while the connection waits for a reconnect, tries now. */
  connect(): void;
  /** Closes until connect() is called again; the groups and positions are remembered. */
  close(): void;
  /**
   * Joins a group, and again after every reconnect. `since` asks for the messages after a position; `presence` asks for
   * the event `presence`.
   */
  join(group: string, options?: { since?: Position | null; presence?: boolean }): Promise<Joined>;
  /** Leaves a group, and forgets its position. */
  leave(group: string): Promise<Left>;
  /** Publishes to a group. A publish with an `id` that the server knows is not delivered again (with history). */
  publish(group: string, data: unknown, options?: { id?: string }): Promise<Published>;
  /** Asks who is in a group. The connection need not be a member. */
  presence(group: string): Promise<Presence>;
  /** Pings the server; returns the round trip in seconds. */
  check(): Promise<number>;

  addEventListener<Name extends keyof RealtimeEventMap>(
    name: Name,
    listener: Listener<RealtimeConnection, RealtimeEventMap[Name]> | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    name: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<Name extends keyof RealtimeEventMap>(
    name: Name,
    listener: Listener<RealtimeConnection, RealtimeEventMap[Name]> | null,
    options?: boolean | EventListenerOptions,
  ): void;
  removeEventListener(
    name: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | EventListenerOptions,
  ): void;
}

export {};

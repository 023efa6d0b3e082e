/**
 * Browser client of the `realtime.v1` protocol: an ES module without dependencies and without a build step.
 *
 *     import { RealtimeConnection } from "django-channels-realtime";
 *
 *     const connection = new RealtimeConnection("/ws/");
 *     connection.addEventListener("message", ({ detail }) => console.log(detail.group, detail.data));
 *     connection.connect();
 *     await connection.join("public.lobby");
 *     await connection.publish("public.lobby", { hello: 1 });
 *
 * On a page without a bundler, import from the address of `{% static "realtime/realtime.js" %}` instead.
 *
 * A connection maintains itself: it answers the server's pings, detects a dead socket even when the browser does
 * not, reconnects with back-off, joins its groups again, and asks for the messages that it missed in groups that keep
 * history. All durations are seconds, all times are `Date.now()` milliseconds.
 *
 * The module is one file in three parts: `Place` (one group), `Link` (one socket), `RealtimeConnection`.
 * Storages of static files that put a hash into file names do not rewrite imports between modules, so the parts could
 * come from different releases (docs/decisions/0030-the-client-is-one-file.md).
 *
 * @module realtime
 */

export const SUBPROTOCOL = "realtime.v1";

/** Seconds of silence that are allowed until the server's welcome sets another limit. */
const DEFAULT_MAX_SILENCE = 45;

/** Seconds between two checks of the clock by a link. */
const LOOK_EVERY = 1;

/** If a connection stayed open for this many seconds, the server is well, and the back-off starts again from 0. */
const STABLE_AFTER = 10;

/** The longest wait of setTimeout() in milliseconds: a longer one fires immediately. */
const LONGEST_TIMER = 2 ** 31 - 1;

/**
 * The longest back-off in seconds while the browser says that there is no network. Such an attempt reaches no server.
 * The event `online` alone would be too late: WebKitGTK sends it 4 to 5 s after the network is back.
 */
const OFFLINE_CAP = 1.5;

/** The longest wait for a reconnect in seconds, even if the server asks for more. */
const LONGEST_WAIT = 3600;

/** The longest name of an epoch that the server accepts. */
const LONGEST_EPOCH = 64;

/** The value of `readyState` of an open WebSocket, in every implementation. */
const OPEN = 1;

/** Seconds between two writes of the positions to the storage. A page that is hidden or left writes them as well. */
const REMEMBER_EVERY = 1;

/**
 * @typedef {"closed" | "connecting" | "open" | "waiting"} State
 *   `closed`: nothing happens until connect(). `waiting`: a reconnect is due at `retryAt`.
 *
 * @typedef {object} Frame  One JSON object of the wire protocol; unknown fields are kept.
 * @property {string} type
 * @property {number} [n]
 * @property {number | string} [ref]
 * @property {string} [group]
 * @property {unknown} [data]
 * @property {string | null} [from]  Set by the server on a message that another client published.
 * @property {string} [connection]
 * @property {number} [max_silence]
 * @property {string[]} [groups]
 * @property {Record<string, Position>} [positions]  By group: where the history is, if the group keeps one.
 * @property {Position} [since]
 * @property {string} [id]
 * @property {string} [code]
 * @property {string} [detail]
 * @property {string} [reason]
 * @property {boolean} [reconnect]
 * @property {number} [retry_after]
 * @property {string} [epoch]
 * @property {number} [offset]
 * @property {boolean} [recovered]
 * @property {string} [ticket]
 * @property {number} [within]
 * @property {any} [presence]  `true` asks for the users in a group; the answer has them: a Present.
 * @property {string[]} [users]
 * @property {string[]} [joined]
 * @property {string[]} [left]
 * @property {number} [anonymous]
 * @property {number} [total]
 *
 * @typedef {{ users: string[], anonymous: number, total: number }} Present  The users in a group, at most the first
 *   1,000; the number of anonymous connections; the number of all users.
 *
 * @typedef {{ epoch: string, offset: number }} Position  The place of a message in the history of its group.
 *
 * @typedef {object} Close  How the last socket ended.
 * @property {number | null} code  The close code; null if this client ended the socket itself.
 * @property {string} reason  The first of these that exists: the reason in the server's goodbye, the reason in the
 *   close frame, our own reason (`silent`, `never_opened`, `no_ticket`, `closed_here`), "".
 * @property {number} at
 *
 * @typedef {object} Options  Durations in seconds.
 * @property {number} backoffBase  The first reconnect waits between 0 and this.
 * @property {number} backoffCap  The longest back-off.
 * @property {number} connectTimeout  From connect() until the server's welcome. It must be longer than a server
 *   needs to accept a client in a connection storm (Daphne gives up after 20 s). Otherwise clients that give up and
 *   try again would feed the storm.
 * @property {number} answerTimeout  If the server does not answer a question within this time, the socket is dead.
 * @property {boolean | string} [remember]  Keeps the positions in `sessionStorage`, so that a reloaded page recovers.
 *   Connections to the same URL in one page need names of their own: pass a string.
 * @property {boolean | { size?: number, ttl?: number }} [queue]  Publishes wait for the connection: at most `size`
 *   (100), each at most `ttl` seconds (60).
 * @property {() => string | Promise<string>} [ticket]  Called before each attempt, and when the server asks for a
 *   refresh. It returns a new ticket. If it rejects, the client tries again later; if the error has a true property
 *   `stop`, it does not.
 * @property {new (url: string, protocols: string[]) => any} [WebSocket]  The constructor of sockets, for example that
 *   of the package `ws`.
 */

/** @type {Readonly<Options>} */
const DEFAULTS = {
  backoffBase: 1,
  backoffCap: 30,
  connectTimeout: 30,
  answerTimeout: 5,
};

/** A command that the server refused (`code` comes from the error frame) or that could not be delivered. */
export class RealtimeError extends Error {
  /**
   * @param {string} code  An error code of the protocol, or `not_connected` (the command was never sent),
   *   `disconnected` (the command was sent, but the connection was lost before the answer, so the command may or may
   *   not have been carried out), `queue_full` and `expired` (the publish was never sent), `closed`, `left`.
   * @param {string} message
   */
  constructor(code, message) {
    super(message);
    this.name = "RealtimeError";
    this.code = code;
  }
}

/**
 * Returns true if a client may reconnect after a close with this code.
 *
 * Every code except 4500-4999 allows another attempt. This includes 1000, because Daphne closes a connection with
 * 1000 after 24 h.
 *
 * @param {number | null} code
 * @returns {boolean}
 */
export function mayReconnect(code) {
  return code === null || code < 4500 || code > 4999;
}

/**
 * Full-jitter exponential back-off. If thousands of clients lose one server, their reconnects spread over the window.
 *
 * @param {number} attempt  0 for the first.
 * @param {number} base
 * @param {number} cap
 * @returns {number}  Seconds.
 */
function backoff(attempt, base, cap) {
  return Math.random() * Math.min(cap, base * 2 ** attempt);
}

/**
 * @template T
 * @typedef {object} Deferred
 * @property {Promise<T>} promise
 * @property {(value: T) => void} resolve
 * @property {(error: Error) => void} reject
 */

/**
 * @typedef {object} Queued  A publish of a connection with a queue.
 * @property {Frame & { group: string }} frame
 * @property {Deferred<Frame>} answer
 * @property {number} until  When it is too old to be sent.
 * @property {boolean} sent  True if it was sent on an earlier socket, which broke before the answer.
 * @property {ReturnType<typeof setTimeout>} [timer]
 *
 * @typedef {object} Command
 * @property {string} type
 * @property {string} group
 * @property {number} tries
 * @property {Deferred<Frame> | null} answer
 * @property {Queued} [queued]
 */

/**
 * @template T
 * @returns {Deferred<T>}
 */
function deferred() {
  /** @type {any} */
  const answer = {};
  answer.promise = new Promise((resolve, reject) => Object.assign(answer, { resolve, reject }));
  return answer;
}

/**
 * Returns the position that a value has, or null. Everything from outside passes here: the server, the storage.
 *
 * @param {any} value
 * @returns {Position | null}
 */
function readPosition(value) {
  const { epoch, offset } = value ?? {};
  const usable = typeof epoch === "string" && epoch.length <= LONGEST_EPOCH && Number.isSafeInteger(offset) && offset >= 0;
  return usable ? { epoch, offset } : null;
}

/**
 * What this client knows of one group: its place in the history, and the users who are there.
 *
 * Each message is delivered once and in order. If that cannot be, the application is told `reset`.
 */
class Place {
  /** @type {(name: string, detail: object) => void} */ #tell;
  /** @type {() => void} */ #ask;

  /** The last message that was delivered, or after which to begin. @type {Position | null} */ since = null;
  /** The ref of a join with `since` that waits for its answer. Until then messages are held. */
  asked = 0;
  /** The end of the recovery that runs. @type {Position | null} */ #end = null;
  /** The messages of this recovery so far. */
  #count = 0;
  /** False if the server left out a message of this recovery. */
  #whole = true;
  /** Live messages that come after the recovery. @type {Frame[]} */ #held = [];
  #losses = 0;

  /** True if the application wants to know the users. @type {true | undefined} */ presence;
  /** The ref of the newest join that asks for the users, until its answer. */
  looked = 0;
  /** The changes since that join was sent: the users in its answer may be older. @type {Frame[]} */ #changes = [];
  /** What the application knows of the users. @type {{ users: Set<string>, anonymous?: number, total?: number }} */
  #told = { users: new Set() };

  /**
   * @param {(name: string, detail: object) => void} tell  Dispatches an event about this group.
   * @param {() => void} ask  Sends a join with `since`.
   */
  constructor(tell, ask) {
    this.#tell = tell;
    this.#ask = ask;
  }

  /** Returns what is kept in the storage. */
  toJSON() {
    return this.since;
  }

  /** Forgets what belonged to the socket that ended. Held messages were not delivered, so the next join recovers them. */
  lost() {
    this.#losses += 1;
    this.asked = 0;
    this.#end = null;
    this.#held = [];
  }

  /**
   * Handles the answer to a join of this group.
   *
   * @param {Frame} frame
   */
  joined(frame) {
    const position = readPosition(frame);
    if (frame.ref !== this.asked) {
      // Without `since` in the join. If a message came first, it says more.
      this.since ??= position;
      return;
    }
    this.asked = 0;
    if (!position || frame.recovered !== true) return this.refused(position);
    this.#end = position;
    this.#count = 0;
    this.#whole = true;
    // The server sends these again, in their order.
    this.#held = this.#held.filter((frame) => !(Number(frame.offset) <= position.offset));
    this.#finish();
  }

  /**
   * Goes on at another position, and tells the application that messages between are lost to it.
   *
   * @param {Position | null} position  null if the group keeps no history, or this client may not ask.
   */
  refused(position) {
    this.asked = 0;
    this.#end = null;
    this.since = position;
    this.#reset("refused");
    if (position && this.#held.some((frame) => frame.epoch !== position.epoch)) {
      // Whether they are older or newer than this epoch, only the server knows.
      this.#held = [];
      this.#ask();
      return;
    }
    // Of the others, take() drops those that the application loads now.
    this.#release();
  }

  /**
   * Handles the server's word that the history cannot be continued.
   *
   * @param {Frame} frame
   */
  reset(frame) {
    this.since = readPosition(frame);
    this.#end = null;
    this.#held = [];
    this.#reset("reset");
  }

  /**
   * Delivers a message, or holds it, or drops it.
   *
   * @param {Frame} frame
   */
  take(frame) {
    const position = readPosition(frame);
    if (this.asked || (this.#end && !(position && position.offset <= this.#end.offset))) {
      this.#held.push(frame);
      return;
    }
    if (position && this.since) {
      const { epoch, offset } = this.since;
      // In another epoch the offset says nothing, except in a recovery: the server continues the old epoch.
      if (position.offset <= offset && (this.#end || position.epoch === epoch)) return;
      if (position.offset > offset + 1) {
        if (!this.#end) {
          // The server fills such gaps. If it did not, ask for what is missing.
          this.#held.push(frame);
          this.#ask();
          return;
        }
        this.#whole = false;
        this.since = { ...position, offset: position.offset - 1 };
        this.#reset("refused");
      }
    }
    // First, because a listener may leave the group or close the connection.
    if (position) this.since = position;
    if (this.#end) this.#count += 1;
    this.#tell("message", this.#end ? { ...frame, recovered: true } : frame);
    this.#finish();
  }

  #finish() {
    if (!this.#end || !this.since || this.since.offset < this.#end.offset) return;
    // The same message in the newer epoch, which the server remembers for longer.
    if (this.since.offset === this.#end.offset) this.since = this.#end;
    this.#end = null;
    if (this.#whole) this.#tell("recovered", { messages: this.#count });
    this.#release();
  }

  #release() {
    const losses = this.#losses;
    for (const frame of this.#held.splice(0)) {
      // If a listener closes the connection, the rest is recovered later. If a gap appears, take() holds the rest.
      if (losses === this.#losses) this.take(frame);
    }
  }

  /** @param {number} ref  The ref of a join that asks for the users. They include all changes that arrived before. */
  look(ref) {
    this.looked = ref;
    this.#changes = [];
  }

  /**
   * Takes the users from the answer to a join, or a change of them.
   *
   * @param {Frame} frame
   */
  see(frame) {
    const { type, ref, presence } = frame;
    if (!this.presence) return;
    if (type === "presence") {
      if (this.looked) this.#changes.push(frame);
      else this.#see(this.#told.users, [frame]);
    } else if (ref === this.looked) {
      this.looked = 0;
      if (presence) this.#see(presence.users, [presence, ...this.#changes]);
    }
  }

  /**
   * Replaces the users, and tells the application what is different.
   *
   * @param {Iterable<string>} present
   * @param {Partial<Frame>[]} changes  Changes of these users. The last one has the numbers.
   */
  #see(present, changes) {
    const users = new Set(present);
    const before = this.#told;
    let anonymous, total;
    for (const change of changes) {
      for (const user of change.joined ?? []) users.add(user);
      for (const user of change.left ?? []) users.delete(user);
      ({ anonymous, total } = change);
    }
    const joined = [...users].filter((user) => !before.users.has(user));
    const left = [...before.users].filter((user) => !users.has(user));
    this.#told = { users, anonymous, total };
    if (joined.length || left.length || anonymous !== before.anonymous || total !== before.total) {
      this.#tell("presence", { users: [...users], joined, left, anonymous, total });
    }
  }

  /** @param {"refused" | "reset"} reason */
  #reset(reason) {
    this.#tell("reset", { reason, position: this.since });
  }
}

/**
 * One WebSocket from its first packet to its end. Only the link decides that its socket is dead.
 *
 * A link that has ended reports no more events. The browser may deliver the old socket's events minutes later,
 * because it waits for a close handshake with a peer that is gone. By then the connection may have a new socket,
 * and must not get events of the old one.
 */
class Link {
  /** While a ticket is fetched there is none. @type {WebSocket | undefined} */ #socket;
  /** @type {Options} */ #options;
  /** @type {(frame: Frame) => void} */ #onFrame;
  /** @type {(code: number | null, reason: string, final?: boolean) => void} */ #onOver;
  /** @type {ReturnType<typeof setInterval>} */ #timer;
  #over = false;

  // Use the wall clock: on some platforms timers and performance.now() stop while the machine sleeps. After the
  // machine wakes, only the wall clock shows how long the silence was.
  #lookedAt = Date.now();
  /** If no frame arrives before this time, the link is dead. */
  #deadline = 0;
  /** The time at which the link pings because a command got no answer; Infinity if no command waits. */
  #askAt = Infinity;

  #n = 0;
  #asking = false;
  /** @type {Map<number, Deferred<number> & { sentAt: number }>} */ #pings = new Map();

  /** @type {number | null} When the last frame arrived. */ heardAt = null;
  /** @type {number | null} When the server's welcome arrived. */ openedAt = null;
  /** @type {number | null} */ roundTrip = null;
  maxSilence = DEFAULT_MAX_SILENCE;

  /**
   * @param {string} url
   * @param {Options} options
   * @param {(frame: Frame) => void} onFrame
   * @param {(code: number | null, reason: string, final?: boolean) => void} onOver  Called once, synchronously, by
   *   end().
   */
  constructor(url, options, onFrame, onOver) {
    this.#options = options;
    this.#onFrame = onFrame;
    this.#onOver = onOver;
    this.#deadline = Date.now() + options.connectTimeout * 1000;
    this.#timer = setInterval(() => this.look(), LOOK_EVERY * 1000);
    if (options.ticket) this.#present(url);
    else this.#dial(url, []);
  }

  /**
   * Fetches a ticket and connects with it. The ticket goes nowhere else: an error of a socket would quote it.
   *
   * @param {string} url
   */
  async #present(url) {
    try {
      // Wait first, because end() must not be called before the constructor has returned.
      await null;
      const ticket = /** @type {any} */ (await this.#options.ticket?.()).trim(); // If there is no text, this throws.
      // The time for the attempt may be over, or the application may have closed the connection.
      if (!this.#over) this.#dial(url, [`realtime.ticket.${ticket}`]);
    } catch (/** @type {any} */ error) {
      this.end(null, "no_ticket", error?.stop);
    }
  }

  /**
   * @param {string} url
   * @param {string[]} tickets
   */
  #dial(url, tickets) {
    const socket = new (this.#options.WebSocket ?? WebSocket)(url, [SUBPROTOCOL, ...tickets]);
    socket.onmessage = (/** @type {MessageEvent} */ event) => this.#hear(event.data);
    // A close event follows. The package `ws` throws an error that has no listener.
    socket.onerror = () => {};
    socket.onclose = (/** @type {CloseEvent} */ event) => this.end(event.code, event.reason);
    this.#socket = socket;
  }

  /**
   * Starts the limit on silence. The connection calls this when the welcome arrived.
   *
   * @param {any} maxSilence  Seconds for which the server may be silent. An unusable value means the default.
   */
  opened(maxSilence) {
    this.maxSilence = Number.isFinite(maxSilence) && maxSilence > 0 ? maxSilence : DEFAULT_MAX_SILENCE;
    this.openedAt = Date.now();
    this.#deadline = this.openedAt + this.maxSilence * 1000;
  }

  /**
   * Sends a command that the server must answer. If complete silence follows, the link sends a ping. So a client
   * that publishes into a dead socket detects it after two answerTimeouts, and not only after max_silence.
   *
   * @param {Frame} frame
   */
  command(frame) {
    this.#askAt = Math.min(this.#askAt, Date.now() + this.#options.answerTimeout * 1000);
    this.#write(frame);
  }

  /**
   * Pings the server. If nothing arrives for answerTimeout before the pong does, the socket is dead. While other
   * frames arrive, the pong may be queued behind them, and the link waits.
   *
   * @returns {Promise<number>}  The round trip in seconds; rejected if the link ends first.
   */
  ask() {
    const last = this.#pings.get(this.#n);
    if (this.#asking && last) return last.promise; // A wake-up fires several events, which share one ping.
    /** @type {Deferred<number> & { sentAt: number }} */
    const ping = { ...deferred(), sentAt: performance.now() };
    // Most callers only want the side effect, and the browser reports an unhandled rejection as an error.
    ping.promise.catch(() => {});
    this.#pings.set(++this.#n, ping);
    this.#asking = true;
    this.expectFrame();
    this.#write({ type: "ping", n: this.#n });
    return ping.promise;
  }

  /** Bounds the wait for the next frame, or for the close frame after the server's goodbye, which may be lost. */
  expectFrame() {
    this.#deadline = Math.min(this.#deadline, Date.now() + this.#options.answerTimeout * 1000);
  }

  /** Compares the clock with the deadlines. */
  look() {
    const now = Date.now();
    const late = now - this.#lookedAt > 2 * LOOK_EVERY * 1000;
    this.#lookedAt = now;
    // After a stall of this page, frames that arrived in time may be queued behind this timer: handle them first.
    if (late) setTimeout(() => this.#judge(), 0);
    else this.#judge();
  }

  #judge() {
    if (this.#over) return;
    const now = Date.now();
    if (now >= this.#deadline) return this.end(null, this.openedAt === null ? "never_opened" : "silent");
    // If the clock was set back, the deadline must not move hours away.
    this.#deadline = Math.min(this.#deadline, now + Math.max(this.maxSilence, this.#options.connectTimeout) * 1000);
    if (now >= this.#askAt) {
      this.#askAt = Infinity;
      this.ask();
    }
  }

  /**
   * Ends the link now, without waiting for the socket's close event, which takes minutes if there is no network.
   *
   * @param {number | null} code
   * @param {string} reason
   * @param {boolean} [final]  True if no other link may follow by itself.
   */
  end(code, reason, final) {
    if (this.#over) return;
    this.#over = true;
    clearInterval(this.#timer);
    this.#socket?.close();
    for (const ping of this.#pings.values()) ping.reject(disconnected());
    this.#pings.clear();
    this.#onOver(code, reason, final);
  }

  /** @param {unknown} payload */
  #hear(payload) {
    if (this.#over) return;
    const frame = decode(payload);
    // Answer here and not in a timer, because timers of a hidden tab run once a minute. Answer before listeners get
    // the frame, so that a slow listener costs no connection.
    if (frame?.type === "ping") this.#write({ type: "pong", n: frame.n });
    if (frame?.type === "pong") this.#ponged(frame.n);
    // Every frame ends the silence, even an unknown one. But an open ping stays open: frames that waited in a buffer
    // while the page slept prove nothing about the server now.
    this.heardAt = Date.now();
    this.#askAt = Infinity;
    const silence = this.#asking ? Math.min(this.#options.answerTimeout, this.maxSilence) : this.maxSilence;
    if (this.openedAt !== null) this.#deadline = this.heardAt + silence * 1000;
    if (frame !== null) this.#onFrame(frame);
  }

  /** @param {unknown} n */
  #ponged(n) {
    if (typeof n !== "number") return;
    if (n >= this.#n) this.#asking = false;
    for (const [number, ping] of this.#pings) {
      if (number > n) continue;
      this.#pings.delete(number);
      if (number === n) this.roundTrip = (performance.now() - ping.sentAt) / 1000;
      ping.resolve((performance.now() - ping.sentAt) / 1000);
    }
  }

  /** @param {Frame} frame */
  #write(frame) {
    if (this.#socket?.readyState === OPEN) this.#socket.send(JSON.stringify(frame));
  }
}

/**
 * @param {unknown} payload
 * @returns {Frame | null}  null if the payload is not a frame: binary, not JSON, not an object with a type.
 */
function decode(payload) {
  try {
    const frame = typeof payload === "string" && JSON.parse(payload);
    if (typeof frame?.type === "string") return frame;
  } catch {
    // Not JSON.
  }
  return null;
}

/**
 * A connection that reconnects: it outlives any number of sockets.
 *
 * Events, each a CustomEvent:
 * - `state`: `detail` is `{state, previous}`. `connection.lastClose` and `connection.retryAt` say why and when.
 * - `message`: `detail` is the frame: `{group, data, from?, offset?, epoch?}`; with `recovered: true` if the message
 *   was missed and sent later.
 * - `recovered`: `detail` is `{group, messages}`: everything that was missed in this group has been delivered, and how
 *   many messages that were.
 * - `reset`: `detail` is `{group, reason, position}`: messages of this group are lost to this client. The application
 *   loads its state again. The reason is `refused` (this client missed too much) or `reset` (the server lost the history).
 * - `presence`: `detail` is `{group, users, joined, left, anonymous, total}`: the users in a group that was joined with
 *   `presence`, and how they differ from the last event.
 * - `groups`: `detail` is `{groups}`, the groups that the server has confirmed.
 * - `removed`: `detail` is the frame: `{group, reason}`: the server removed this connection from the group, which is not
 *   joined again by itself. The reason `forbidden` says that the user may not be in it any more.
 * - `notification`: `detail` is the frame: `{data}`, which server code sent to the user of this connection.
 * - `ping`: `detail` is the frame: `{n}`; the ping is already answered.
 * - `refresh`: `detail` is the frame: `{within}`: the right to this connection ends in so many seconds. The client is
 *   already renewing it.
 * - `goodbye`: `detail` is the frame: `{reason, reconnect, retry_after}`; the close follows.
 * - `error`: `detail` is `{code, detail, ref?, group?}`: an error that none of your promises reports.
 */
export class RealtimeConnection extends EventTarget {
  /** @type {string} */ #url;
  /** The URL with the id of this client, by which the server knows which connection a new one replaces. */
  /** The URL of the socket, up to the client id. @type {string} */ #address;
  /** The client id; empty if the application has chosen one in its URL. */
  #client = "";
  /** @type {Options} */ #options;
  /** @type {State} */ #state = "closed";
  /** @type {Link | null} */ #link = null;
  /** @type {string | null} */ #id = null;
  /** @type {Close | null} */ #lastClose = null;
  /** @type {Frame | null} */ #goodbye = null;

  #attempt = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #retryTimer;
  /** @type {number | null} */ #retryAt = null;
  /** True if the server chose the time of the next attempt. */
  #slotted = false;
  /** @type {AbortController | null} */ #listening = null;

  #ref = 0;
  /** Commands on the current socket that wait for an answer, by ref. @type {Map<number | string, Command>} */
  #commands = new Map();
  /** Joins that the application waits for; they survive a reconnect. @type {Map<string, Deferred<Frame>>} */
  #joins = new Map();
  /** The groups that the application asked for. @type {Set<string>} */
  #wanted = new Set();
  /** Groups that it left on purpose; the URL or the server may add it again on the next socket. @type {Set<string>} */
  #unwanted = new Set();
  /** The groups that the server confirmed on the current socket. @type {Set<string>} */
  #joined = new Set();

  /** @type {Map<string, Place>} */ #places = new Map();
  /** Groups in which this client published and that keep history. @type {Set<string>} */ #repeatable = new Set();
  /** The key of the positions in the storage; "" if they are not kept. */
  #key = "";
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #rememberTimer;
  /** The limits of the queue; null without one. @type {{ size: number, ttl: number } | null} */ #limits = null;
  /** Publishes that wait for the connection, in their order. @type {Queued[]} */ #queue = [];
  /** True from the page's `freeze` to its `resume`. */
  #frozen = false;

  /**
   * @param {string | URL} [url]  Relative to the page; http(s) becomes ws(s).
   * @param {Partial<Options>} [options]
   */
  constructor(url = "/ws/", options = {}) {
    super();
    const absolute = new URL(url, globalThis.location?.href);
    absolute.protocol = absolute.protocol.replace(/^http/, "ws");
    this.#url = absolute.href;
    // In memory only: a duplicated tab gets a copy of the storage, and must be another client.
    // If the application has chosen an id of its own, it stays: the server refuses two.
    if (!absolute.searchParams.has("client")) {
      absolute.search += `${absolute.search && "&"}client=`;
      this.#client = newId();
    }
    this.#address = absolute.href;
    this.#options = { ...DEFAULTS, ...options };
    const { remember, queue } = this.#options;
    if (queue) this.#limits = { size: 100, ttl: 60, .../** @type {object} */ (queue) };
    if (remember) this.#recall(`realtime:${remember === true ? this.#url : remember}`);
  }

  get url() {
    return this.#url;
  }

  get state() {
    return this.#state;
  }

  /** The server's name for this connection while it is open, otherwise null. */
  get id() {
    return this.#id;
  }

  /** The groups that the server has confirmed on this socket. */
  get groups() {
    return [...this.#joined];
  }

  get lastClose() {
    return this.#lastClose;
  }

  /** The time at which the next attempt starts while the state is `waiting`, otherwise null. */
  get retryAt() {
    return this.#retryAt;
  }

  /** The time at which the last frame arrived on this socket, or null. */
  get heardAt() {
    return this.#link?.heardAt ?? null;
  }

  /** The longest silence of the server that is allowed, in seconds. */
  get maxSilence() {
    return this.#link?.maxSilence ?? DEFAULT_MAX_SILENCE;
  }

  /** The last measured round trip on this socket in seconds, or null; check() measures one. */
  get roundTrip() {
    return this.#link?.roundTrip ?? null;
  }

  /**
   * Returns the position of the last message of a group that was delivered, or null if it is not known or the group
   * keeps no history. Keep it with the state of your application, and give it to join() in the next life of the page.
   *
   * @param {string} group
   * @returns {Position | null}
   */
  position(group) {
    return readPosition(this.#places.get(group)?.since); // a copy
  }

  /** Connects. While the connection waits for a reconnect, tries now. */
  connect() {
    if (this.#link) return;
    if (this.#state === "closed") this.#attempt = 0;
    // Code of the page runs, so the page is not frozen. A closed connection may have missed that it was resumed.
    this.#frozen = false;
    this.#listen();
    this.#open();
  }

  /** Closes until connect() is called again; the groups are remembered. */
  close() {
    if (this.#state === "closed") return;
    if (this.#link) this.#link.end(null, "closed_here", true);
    else this.#stop();
  }

  /**
   * Joins a group, now or as soon as the connection is open, and again after every reconnect.
   *
   * If the group keeps history, each later join asks for the messages that were missed. The first one asks only if the
   * position is given, or was remembered from an earlier life of the page.
   *
   * With `presence`, the event `presence` tells who is in the group, until the group is left.
   *
   * @param {string} group
   * @param {{ since?: Position | null, presence?: boolean }} [options]  `since`: the last message that the application
   *   has.
   * @returns {Promise<Frame>}  The `joined` frame.
   * @throws {RealtimeError}  The server refused, or the connection was closed first and does not reconnect.
   */
  join(group, { since = null, presence = false } = {}) {
    const waiting = this.#joins.get(group);
    const place = this.#place(group);
    if (waiting && (!presence || place.presence)) return waiting.promise;
    if (presence) place.presence = true;
    place.since = readPosition(since) ?? place.since;
    /** @type {Deferred<Frame>} */
    const answer = waiting ?? deferred();
    this.#joins.set(group, answer);
    this.#wanted.add(group);
    this.#unwanted.delete(group);
    if (this.#state === "open") this.#sendJoin(group);
    return answer.promise;
  }

  /**
   * Leaves a group, and does not join it again.
   *
   * @param {string} group
   * @returns {Promise<Frame>}  The `left` frame.
   */
  async leave(group) {
    this.#wanted.delete(group);
    this.#unwanted.add(group);
    this.#joins.get(group)?.reject(new RealtimeError("left", `The group was left.`));
    this.#joins.delete(group);
    this.#forget(group);
    // Without a socket there is nothing to leave, because membership ends with the connection.
    if (this.#state !== "open") return { type: "left", group };
    return this.#command({ type: "leave", group });
  }

  /**
   * Publishes to a group. No membership is needed, and members get their own messages too.
   *
   * While the connection is not open, nothing is queued, because only the application knows whether a message is still
   * worth sending later: it says so with the option `queue`. A publish with an `id` that the server knows is not
   * delivered again, if the group keeps history.
   *
   * @param {string} group
   * @param {unknown} data  Any value that can be encoded as JSON.
   * @param {{ id?: string }} [options]  1 to 64 characters; a new random one if none is given.
   * @returns {Promise<Frame>}  The `published` frame.
   * @throws {RealtimeError}  Not connected, the server refused, the connection was lost before the answer, or the queue
   *   was full or too slow.
   * @throws {TypeError}  JSON has no form for `data`.
   */
  async publish(group, data, { id = newId() } = {}) {
    const text = JSON.stringify(data);
    if (text === undefined) throw new TypeError("JSON cannot encode this data.");
    if (!this.#limits || this.#state === "closed") return this.#command({ type: "publish", group, data, id });
    const { size, ttl } = this.#limits;
    if (this.#state !== "open" && this.#queue.length >= size) {
      throw new RealtimeError("queue_full", `${size} publishes wait.`);
    }
    // A copy, because the application may change its object before it is sent.
    const frame = { type: "publish", group, data: JSON.parse(text), id };
    /** @type {Queued} */
    const queued = { frame, answer: deferred(), until: Date.now() + ttl * 1000, sent: false };
    if (this.#state === "open") this.#sendQueued(queued);
    else this.#enqueue(queued);
    return queued.answer.promise;
  }

  /**
   * Asks who is in a group. No membership is needed.
   *
   * @param {string} group
   * @returns {Promise<Frame>}  The `presence` frame, with `users`, `anonymous` and `total`.
   * @throws {RealtimeError}  Not connected, the server refused, or the connection was lost before the answer.
   */
  presence(group) {
    return this.#command({ type: "presence", group });
  }

  /**
   * Pings the server. If `answerTimeout` passes in silence, the socket is abandoned.
   *
   * @returns {Promise<number>}  The round trip in seconds.
   * @throws {RealtimeError}  Not connected, or the connection was lost.
   */
  async check() {
    if (this.#state !== "open" || !this.#link) throw notConnected();
    return this.#link.ask();
  }

  #open() {
    clearTimeout(this.#retryTimer);
    this.#retryAt = null;
    this.#slotted = false;
    this.#goodbye = null;
    this.#link = new Link(
      this.#address + this.#client,
      this.#options,
      (frame) => this.#receive(frame),
      (code, reason, final) => this.#lost(code, reason, final),
    );
    this.#enter("connecting");
  }

  /** @param {Frame} frame */
  #receive(frame) {
    switch (frame.type) {
      case "welcome":
        return this.#welcome(frame);
      case "message":
      case "reset":
        return this.#history(frame);
      case "error":
        return this.#refused(frame);
      case "goodbye":
        this.#goodbye = frame;
        this.#link?.expectFrame();
      // falls through
      case "ping":
      case "notification":
      case "refresh":
        if (frame.type === "refresh") this.#refresh();
        return emit(this, frame.type, frame);
      default: // Answers, changes of presence, and unknown types, which are for newer clients.
        return this.#answered(frame);
    }
  }

  /** @param {Frame} frame */
  #welcome(frame) {
    this.#id = frame.connection ?? null;
    this.#link?.opened(frame.max_silence);
    this.#joined = new Set(frame.groups);
    for (const group of new Set([...this.#wanted, ...this.#joined])) {
      const place = this.#place(group);
      const position = readPosition(frame.positions?.[group]);
      if (this.#unwanted.has(group)) this.#send({ type: "leave", group }, null);
      else if (!this.#joined.has(group) || place.since) this.#sendJoin(group);
      else {
        if (place.presence) this.#sendJoin(group);
        else this.#settleJoin(group, { type: "joined", group, ...position });
        // After the join, which asks for no messages.
        place.since = position;
      }
    }
    for (const queued of this.#queue.splice(0)) this.#sendQueued(queued);
    // Last, because a listener may join, publish or close.
    this.#enter("open");
    this.#emitGroups();
  }

  /** @param {Frame} frame */
  #answered(frame) {
    const command = this.#take(frame.ref);
    const { type, group = command?.group } = frame;
    const position = readPosition(frame);
    if (group === undefined) return;
    if (type === "joined") {
      this.#joined.add(group);
      this.#settleJoin(group, frame);
      this.#emitGroups();
      this.#place(group).joined(frame);
      // A listener may have left the group.
      this.#places.get(group)?.see(frame);
      this.#rememberSoon();
    }
    if (type === "published" && position) this.#repeatable.add(group);
    if (type === "left" || type === "removed") {
      // Without a ref, the server removed this connection from the group, so do not join it again. A join that waits
      // has an answer of its own.
      if (!command && !this.#joins.has(group)) this.#wanted.delete(group);
      this.#joined.delete(group);
      // The application may have joined again.
      if (!this.#wanted.has(group)) this.#forget(group);
      this.#emitGroups();
      if (type === "removed") emit(this, type, frame);
    }
    if (type === "presence" && !command) this.#places.get(group)?.see(frame);
    command?.answer?.resolve(frame);
  }

  /** @param {Frame} frame */
  #refused(frame) {
    const { code = "internal", detail = "" } = frame;
    const command = this.#take(frame.ref);
    if (command?.answer) return command.answer.reject(new RealtimeError(code, detail));
    if (command?.type !== "join") return emit(this, "error", { code, detail, ref: frame.ref });
    const { group, tries } = command;
    const waiting = this.#joins.get(group);
    // After these, a join is tried again. Every other refusal of a join is final.
    const passing = code === "rate_limited" || code === "internal";
    const place = this.#place(group);
    const member = this.#joined.has(group);
    if (passing && (!waiting || member)) return this.#rejoinLater(group, tries);
    const { presence } = place;
    place.presence = undefined;
    if (member) {
      // The connection stays in the group, but may not ask for what it missed, or for the users.
      if (!presence) this.#settleJoin(group, { type: "joined", group });
      if (place.asked === frame.ref) place.refused(null);
      if (!presence) return;
    } else {
      this.#wanted.delete(group);
      // After a passing error, the application may join again, and misses nothing.
      if (passing) place.lost();
      else this.#forget(group);
    }
    this.#joins.delete(group);
    if (waiting) waiting.reject(new RealtimeError(code, detail));
    else emit(this, "error", { code, detail, ref: frame.ref, group });
  }

  /**
   * @param {string} group
   * @param {number} tries
   */
  #rejoinLater(group, tries) {
    // On a newer socket, the welcome has already joined the group.
    this.#later(tries, () => {
      const missing = this.#wanted.has(group) && !this.#joined.has(group);
      const place = this.#place(group);
      if (missing || place.asked || place.looked) this.#sendJoin(group, tries + 1);
    });
  }

  /**
   * Renews the right to the current socket, and tries again until the socket ends.
   *
   * @param {number} [tries]
   */
  async #refresh(tries = 0) {
    const link = this.#link;
    try {
      const ticket = this.#options.ticket && (await this.#options.ticket()).trim();
      if (this.#link === link) await this.#command({ type: "refresh", ticket });
    } catch (/** @type {any} */ error) {
      if (this.#link !== link) return;
      if (error instanceof RealtimeError) emit(this, "error", { code: error.code, detail: error.message });
      if (!error?.stop) this.#later(tries, () => this.#refresh(tries + 1));
    }
  }

  /**
   * Does something after a back-off, unless the socket ends before.
   *
   * @param {number} tries
   * @param {() => void} again
   */
  #later(tries, again) {
    const link = this.#link;
    const wait = backoff(tries, this.#options.backoffBase, this.#options.backoffCap);
    setTimeout(() => this.#link === link && again(), wait * 1000);
  }

  /**
   * Handles the end of the current socket, for any reason.
   *
   * @param {number | null} code
   * @param {string} reason
   * @param {boolean} [final]  True if the connection must not come back, whatever the code.
   */
  #lost(code, reason, final) {
    const link = this.#link;
    const goodbye = this.#goodbye;
    this.#link = null;
    this.#id = null;
    this.#lastClose = { code, reason: goodbye?.reason || reason, at: Date.now() };
    // 4509: the server closed the current socket for one that it took for newer: a late attempt of this client, which it
    // had given up. Under a new id, the client comes back and takes no other for its own.
    // 4501: with another ticket, the server may let the client in.
    const allowed = mayReconnect(code) ? goodbye?.reconnect !== false : code === 4501 && this.#options.ticket;
    final ||= !(code === 4509 ? (this.#client &&= newId()) : allowed);
    for (const place of this.#places.values()) place.lost();
    /** @type {Queued[]} */
    const again = [];
    for (const { type, group, answer, queued } of this.#commands.values()) {
      // In a group with history, a repeated `id` is harmless.
      const repeatable = this.#repeatable.has(group) || this.#places.get(group)?.since;
      if (queued && !final && repeatable && again.length < (this.#limits?.size ?? 0)) again.push(queued);
      else if (type === "leave") answer?.resolve({ type: "left", group }); // The membership ended with the connection.
      else answer?.reject(disconnected());
    }
    this.#commands.clear();
    // They were published before those that wait.
    for (const queued of [...again, ...this.#queue.splice(0)]) this.#enqueue(queued);
    this.#joined.clear();
    // Only a connection that lasted resets the back-off. A server that drops clients immediately does not.
    if (link?.openedAt && Date.now() - link.openedAt >= STABLE_AFTER * 1000) this.#attempt = 0;
    if (final) this.#stop();
    else this.#retry(goodbye?.retry_after ?? -1);
    this.#emitGroups();
  }

  /** @param {number} retryAfter  Seconds, if the server chose this client's slot; otherwise negative. */
  #retry(retryAfter) {
    const { backoffBase, backoffCap } = this.#options;
    const offline = globalThis.navigator?.onLine === false;
    let wait = backoff(this.#attempt, backoffBase, offline ? Math.min(backoffCap, OFFLINE_CAP) : backoffCap);
    this.#slotted = retryAfter >= 0;
    // Keep the first slot exactly, because the server has already spread its clients.
    if (this.#slotted) wait = this.#attempt === 0 ? retryAfter : Math.max(retryAfter, wait);
    wait = Math.min(wait, LONGEST_WAIT);
    this.#attempt += 1;
    this.#retryAt = Date.now() + wait * 1000;
    // A frozen page opens no socket. It could not answer pings, and the server would drop it again and again.
    this.#retryTimer = setTimeout(() => this.#frozen || this.#open(), wait * 1000);
    this.#enter("waiting");
  }

  #stop() {
    clearTimeout(this.#retryTimer);
    this.#retryAt = null;
    this.#listening?.abort();
    this.#listening = null;
    for (const [group, answer] of this.#joins) {
      this.#wanted.delete(group);
      answer.reject(new RealtimeError("closed", "The connection was closed."));
    }
    this.#joins.clear();
    for (const queued of this.#queue.splice(0)) this.#giveUp(queued, "closed", "The connection was closed.");
    this.#enter("closed");
  }

  /**
   * Listens for events after which a socket that looks open may be dead: if a phone slept until the server dropped
   * its connection, the phone gets no event for that.
   */
  #listen() {
    if (this.#listening) return;
    this.#listening = new AbortController();
    const { signal } = this.#listening;
    const page = globalThis.document;
    /** @type {(target: EventTarget | undefined, name: string, listener: () => void) => void} */
    const on = (target, name, listener) => {
      // Node has a global object without events.
      target?.addEventListener?.(name, listener, { signal });
    };
    const wake = () => {
      this.#frozen = false;
      this.#wake();
    };
    on(globalThis, "online", () => this.#frozen || wake());
    on(globalThis, "focus", wake);
    on(globalThis, "pageshow", wake);
    on(globalThis, "pagehide", () => this.#remember());
    on(page, "resume", wake);
    on(page, "visibilitychange", () => (page.visibilityState === "visible" ? wake() : this.#remember()));
    on(page, "freeze", () => {
      this.#frozen = true;
      this.#remember();
    });
  }

  #wake() {
    if (this.#state === "waiting") {
      // A slot that the server chose stays. A back-off of our own ends here, because its reason may be gone.
      if (!this.#slotted || Date.now() >= Number(this.#retryAt)) this.#open();
      return;
    }
    this.#link?.look();
    if (this.#state === "open") this.#link?.ask();
  }

  /** @param {Frame} frame */
  #history(frame) {
    const { type, group } = frame;
    if (group === undefined) return;
    const place = this.#place(group);
    if (type === "reset") place.reset(frame);
    else place.take(frame);
    this.#rememberSoon();
  }

  /**
   * @param {string} group
   * @returns {Place}
   */
  #place(group) {
    let place = this.#places.get(group);
    if (!place) {
      place = new Place(
        (name, detail) => emit(this, name, { group, ...detail }),
        () => this.#sendJoin(group),
      );
      this.#places.set(group, place);
    }
    return place;
  }

  /** @param {string} group */
  #forget(group) {
    this.#places.get(group)?.lost();
    this.#places.delete(group);
    this.#rememberSoon();
  }

  /**
   * Reads the positions of an earlier life of this page.
   *
   * @param {string} key
   */
  #recall(key) {
    this.#key = key;
    try {
      const stored = JSON.parse(globalThis.sessionStorage.getItem(key) ?? "{}");
      for (const [group, value] of Object.entries(stored)) {
        const since = readPosition(value);
        if (since) this.#place(group).since = since;
      }
    } catch {
      // There is no storage, the page may not use it, or another program wrote there.
    }
  }

  #rememberSoon() {
    if (this.#key) this.#rememberTimer ??= setTimeout(() => this.#remember(), REMEMBER_EVERY * 1000);
  }

  #remember() {
    clearTimeout(this.#rememberTimer);
    this.#rememberTimer = undefined;
    if (!this.#key) return;
    try {
      globalThis.sessionStorage.setItem(this.#key, JSON.stringify(Object.fromEntries(this.#places)));
    } catch {
      // The storage is full or forbidden: the next life of this page recovers from an earlier position, or not at all.
    }
  }

  /** @param {Queued} queued */
  #enqueue(queued) {
    queued.timer = setTimeout(() => this.#expire(queued), Math.min(queued.until - Date.now(), LONGEST_TIMER));
    this.#queue.push(queued);
  }

  /** @param {Queued} queued */
  #expire(queued) {
    this.#queue = this.#queue.filter((each) => each !== queued);
    this.#giveUp(queued, "expired", "The publish waited too long.");
  }

  /** @param {Queued} queued */
  #sendQueued(queued) {
    clearTimeout(queued.timer);
    // Timers of a page that slept are late.
    if (Date.now() > queued.until) return this.#expire(queued);
    queued.sent = true;
    this.#send(queued.frame, queued.answer, 0, queued);
  }

  /**
   * @param {Queued} queued
   * @param {string} code
   * @param {string} message
   */
  #giveUp({ timer, sent, answer }, code, message) {
    clearTimeout(timer);
    answer.reject(sent ? disconnected() : new RealtimeError(code, message));
  }

  /**
   * @param {string} group
   * @param {number} [tries]
   */
  #sendJoin(group, tries = 0) {
    // The promise is in #joins, because the answer may arrive on a later socket.
    const place = this.#place(group);
    const since = place.since ?? undefined; // JSON leaves out undefined.
    const ref = this.#send({ type: "join", group, since, presence: place.presence }, null, tries);
    // The ref is known before the answer can arrive.
    if (since) place.asked = ref;
    if (place.presence) place.look(ref);
  }

  /**
   * @param {Frame} frame
   * @returns {Promise<Frame>}
   */
  async #command(frame) {
    if (this.#state !== "open") throw notConnected();
    /** @type {Deferred<Frame>} */
    const answer = deferred();
    this.#send(frame, answer);
    return answer.promise;
  }

  /**
   * @param {any} frame  A Frame. All commands but a refresh have a group.
   * @param {Deferred<Frame> | null} answer
   * @param {number} [tries]
   * @param {Queued} [queued]
   * @returns {number}  The ref.
   */
  #send(frame, answer, tries = 0, queued = undefined) {
    // A ref is never used twice, so an answer cannot be taken for the answer to another command.
    const ref = ++this.#ref;
    this.#commands.set(ref, { type: frame.type, group: frame.group, tries, answer, queued });
    this.#link?.command({ ...frame, ref });
    return ref;
  }

  /** @param {number | string} [ref]  No command has the ref 0. */
  #take(ref = 0) {
    const command = this.#commands.get(ref);
    this.#commands.delete(ref);
    return command;
  }

  /**
   * @param {string} group
   * @param {Frame} frame
   */
  #settleJoin(group, frame) {
    this.#joins.get(group)?.resolve(frame);
    this.#joins.delete(group);
  }

  /** @param {State} state */
  #enter(state) {
    const previous = this.#state;
    this.#state = state;
    if (state !== previous) emit(this, "state", { state, previous });
  }

  #emitGroups() {
    emit(this, "groups", { groups: this.groups });
  }
}

/**
 * @param {EventTarget} connection
 * @param {string} name
 * @param {object} detail
 */
function emit(connection, name, detail) {
  // Node has no global `CustomEvent` before version 19.
  const event = globalThis.CustomEvent ? new CustomEvent(name, { detail }) : Object.assign(new Event(name), { detail });
  connection.dispatchEvent(event);
}

function notConnected() {
  return new RealtimeError("not_connected", "The connection is not open.");
}

function disconnected() {
  return new RealtimeError("disconnected", "The connection was lost.");
}

/** @returns {string}  A random name. `crypto.randomUUID` exists only on pages of secure contexts, so it is not used. */
function newId() {
  // Node has no global `crypto` before version 19.
  const parts = new Uint32Array(4).map(() => Math.random() * 2 ** 32);
  globalThis.crypto?.getRandomValues(parts);
  return parts.join("-");
}

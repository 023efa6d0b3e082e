/**
 * Sleep as a phone does: the sockets of the page stay open, but nothing is read from them and nothing is sent.
 *
 * The operating system of a sleeping phone keeps the socket and what arrived in it; the page does not run. So events of
 * the sockets are held until the page wakes, and arrive then in their order. What the page sends is dropped. The page
 * hears `freeze` first and `resume` last, as browsers tell it.
 *
 *     const sleep = new Sleep();
 *     const connection = new RealtimeConnection("/ws/", { WebSocket: sleep.WebSocket });
 *     sleep.fall();
 *     sleep.wake();
 */

const HELD = ["open", "message", "error", "close"];

/** Events that would wake the client. A page that sleeps does not hear them. */
const UNHEARD = ["visibilitychange", "pageshow", "resume", "online", "focus"];

export class Sleep {
  #asleep = false;
  /** @type {Event[]} */ #held = [];
  /** How a socket ended during this sleep, or null. @type {{ code: number, at: number } | null} */
  ended = null;

  /** Create it before the connections: of two listeners for one event, the earlier one decides. */
  constructor() {
    for (const name of UNHEARD) {
      window.addEventListener(name, (event) => this.#asleep && event.stopImmediatePropagation(), true);
    }
  }

  get asleep() {
    return this.#asleep;
  }

  /** The constructor of sockets that sleep with the page. */
  get WebSocket() {
    const sleep = this;
    return class extends WebSocket {
      constructor(url, protocols) {
        super(url, protocols);
        for (const name of HELD) this.addEventListener(name, (event) => sleep.#hold(event));
      }

      send(data) {
        if (!sleep.asleep) super.send(data);
      }
    };
  }

  fall() {
    this.ended = null;
    this.#asleep = true;
    document.dispatchEvent(new Event("freeze"));
  }

  wake() {
    this.#asleep = false;
    const held = this.#held;
    this.#held = [];
    for (const event of held) event.target.dispatchEvent(new event.constructor(event.type, event));
    document.dispatchEvent(new Event("resume"));
  }

  #hold(event) {
    if (!this.#asleep) return;
    event.stopImmediatePropagation();
    this.#held.push(event);
    if (event.type === "close") this.ended ??= { code: event.code, at: Date.now() };
  }
}

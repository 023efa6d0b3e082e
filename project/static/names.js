/**
 * The names of users, by their ids. The server names only users who are in the group when it is asked.
 *
 *     const names = new Names("/names", 100);
 *     await names.ask("public.lobby", ["1", "2"]);
 *     names.get("1");
 */

/** Milliseconds for which the page waits for names. */
const PATIENCE = 10_000;

export class Names {
  /** @type {string} */ #url;
  /** @type {number} */ #most;
  /** @type {Map<string, string>} */ #known = new Map();
  /** The requests that wait for their answer, by the ids in them. @type {Map<string, Promise<void>>} */ #asked = new Map();

  /**
   * @param {string} url
   * @param {number} most  The largest number of ids in one request.
   */
  constructor(url, most) {
    this.#url = url;
    this.#most = most;
  }

  /** @param {string} id @returns {string | undefined} */
  get(id) {
    return this.#known.get(id);
  }

  /**
   * Asks for the names that are not known, in one request if they are not too many. Waits for these answers, and for
   * those that are on their way. A name that did not come is asked for again by the next call.
   *
   * @param {string} group  A group that the users are in.
   * @param {string[]} ids
   */
  async ask(group, ids) {
    const unknown = ids.filter((id) => !this.#known.has(id) && !this.#asked.has(id));
    for (let from = 0; from < unknown.length; from += this.#most) {
      const some = unknown.slice(from, from + this.#most);
      const request = this.#fetch(group, some);
      for (const id of some) this.#asked.set(id, request);
    }
    await Promise.all(ids.map((id) => this.#asked.get(id)));
  }

  async #fetch(group, ids) {
    const query = new URLSearchParams([["group", group], ...ids.map((id) => ["id", id])]);
    try {
      const response = await fetch(`${this.#url}?${query}`, { signal: AbortSignal.timeout(PATIENCE) });
      const { names = {} } = await response.json();
      for (const [id, name] of Object.entries(names)) this.#known.set(id, name);
    } catch {
      // The server did not answer. The page shows ids meanwhile.
    } finally {
      for (const id of ids) this.#asked.delete(id);
    }
  }
}

/*
 * A server with the history of one group, in the page, for a random walk: it publishes, loses, repeats, forks, trims,
 * wipes and drops, by the rules of docs/reference.md. The walk checks that the client delivers each message once and
 * in order, or says `reset`. FakeWebSocket carries the frames; nothing here waits for a timer.
 */
const GROUP = "public.walk";

/** A small generator of random numbers (mulberry32): a seed always makes the same walk. */
function generator(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

class World {
  /** The number of epochs so far; the current one is `e<number>`. */
  epochs = 1;
  /** By epoch: the value of each message by its offset. At offset 0: the last value before the first message. */
  values = { e1: [0] };
  first = 1;
  /** Earlier epochs that the current one continues, each with the last offset that both share. */
  forks = [];
  /** The last published value, and the values that no history has any more. */
  value = 0;
  gone = new Set();
  sessions = [];

  get epoch() {
    return `e${this.epochs}`;
  }

  get position() {
    return { epoch: this.epoch, offset: this.values[this.epoch].length - 1 };
  }

  publish(lossy) {
    this.values[this.epoch].push(++this.value);
    for (const session of this.sessions) if (session.member && !lossy) session.sends(this.frame(this.position.offset));
  }

  frame(offset) {
    return { type: "message", group: GROUP, data: this.values[this.epoch][offset], epoch: this.epoch, offset };
  }

  /** Goes on in another Redis, which has the messages up to `offset` only. */
  fork(offset) {
    const old = this.position;
    const kept = this.values[old.epoch].slice(0, offset + 1);
    for (const value of this.values[old.epoch].slice(offset + 1)) this.gone.add(value);
    this.forks = [
      { epoch: old.epoch, offset },
      ...this.forks.map((fork) => ({ ...fork, offset: Math.min(fork.offset, offset) })),
    ];
    this.epochs += 1;
    this.values[this.epoch] = kept;
    this.first = Math.min(this.first, offset + 1);
    if (offset < old.offset) this.resets();
  }

  wipe() {
    for (const value of this.values[this.epoch].slice(1)) this.gone.add(value);
    this.epochs += 1;
    this.values[this.epoch] = [this.value];
    this.forks = [];
    this.first = 1;
    this.resets();
  }

  resets() {
    for (const session of this.sessions) {
      if (session.member) session.sends({ type: "reset", group: GROUP, ...this.position });
    }
  }

  trim(offset) {
    this.first = Math.max(this.first, offset);
  }

  reaches({ epoch, offset }) {
    const shared = epoch === this.epoch ? this.position.offset : this.forks.find((fork) => fork.epoch === epoch)?.offset;
    return shared !== undefined && offset <= shared && this.first <= offset + 1;
  }
}

/** One socket on the side of the server, with frames on their way in both directions. */
class Session {
  member = false;
  toClient = [];
  read = 0;

  constructor(world, socket, byUrl) {
    this.world = world;
    this.socket = socket;
    world.sessions.push(this);
    socket.accept();
    this.member = byUrl;
    const positions = byUrl ? { positions: { [GROUP]: world.position } } : {};
    this.sends({ type: "welcome", connection: "c", max_silence: 45, groups: byUrl ? [GROUP] : [], ...positions });
  }

  sends(frame) {
    this.toClient.push(frame);
  }

  /** Handles the next frame of the client. */
  hear() {
    const text = this.socket.sent[this.read];
    if (text === undefined) return false;
    this.read += 1;
    const { type, ref, since } = JSON.parse(text);
    if (type !== "join") return true;
    this.member = true;
    const { position } = this.world;
    const recovered = since && this.world.reaches(since);
    this.sends({ type: "joined", group: GROUP, ref, ...position, ...(since && { recovered }) });
    if (recovered) {
      for (let offset = since.offset + 1; offset <= position.offset; offset += 1) this.sends(this.world.frame(offset));
    }
    return true;
  }
}

window.walk = (module, seed, steps) => {
  const random = generator(seed);
  const below = (limit) => Math.floor(random() * limit);
  const world = new World();
  const faults = [];
  const counts = { message: 0, recovered: 0, reset: 0, joins: 0, lives: 0 };
  const delivered = new Set();
  let connection, session, byUrl;
  /** All values up to this one are delivered, gone, or covered by a reset. null until the first join. */
  let floor = null;
  let inRecovery = 0;

  const between = (value) => {
    for (let missing = floor + 1; missing < value; missing += 1) {
      if (!world.gone.has(missing)) faults.push(`seed ${seed}: ${missing} is missing before ${value}`);
    }
  };
  const on = {
    message({ data, recovered }) {
      counts.message += 1;
      if (delivered.has(data)) faults.push(`seed ${seed}: ${data} came twice`);
      delivered.add(data);
      if (floor === null) return faults.push(`seed ${seed}: ${data} came before the join`);
      if (data > floor) between(data);
      // Below the floor are only messages that another life of Redis has lost.
      else faults.push(`seed ${seed}: ${data} came after ${floor}`);
      floor = data;
      if (recovered) inRecovery += 1;
    },
    recovered({ messages }) {
      counts.recovered += 1;
      if (messages !== inRecovery) faults.push(`seed ${seed}: ${inRecovery} recovered, ${messages} reported`);
      inRecovery = 0;
    },
    reset({ position }) {
      counts.reset += 1;
      inRecovery = 0;
      floor = Math.max(floor, world.values[position.epoch][position.offset]);
    },
  };

  const begin = () => {
    counts.lives += 1;
    byUrl = random() < 0.5;
    connection = new module.RealtimeConnection("/ws/", { remember: `walk ${seed}` });
    for (const [name, listener] of Object.entries(on)) {
      const mine = connection;
      connection.addEventListener(name, ({ detail }) => mine === connection && listener(detail));
    }
    connection.connect();
    if (!byUrl) connection.join(GROUP).catch(() => {});
    session = null;
  };
  const accept = () => {
    session = new Session(world, WebSocket.all.at(-1), byUrl);
  };
  const drop = () => {
    if (session) {
      counts.joins += session.socket.sent.filter((text) => text.includes('"join"')).length;
      world.sessions = world.sessions.filter((each) => each !== session);
    }
    WebSocket.all.at(-1).drop(1006, "");
    session = null;
    inRecovery = 0;
    connection.connect();
  };
  /** Hands the next frame to the client. */
  const deliver = () => {
    const frame = session?.toClient.shift();
    if (!frame) return false;
    // Where a client without a position begins.
    const start = frame.positions?.[GROUP] ?? (frame.type === "joined" ? frame : null);
    if (start && connection.position(GROUP) === null) {
      floor = Math.max(floor ?? 0, world.values[start.epoch][start.offset]);
    }
    session.socket.deliver(JSON.stringify(frame));
    return true;
  };
  const settle = () => {
    if (!session) accept();
    while (deliver() || session.hear()) {
      // Until both directions are empty.
    }
  };

  begin();
  for (let step = 0; step < steps; step += 1) {
    const dice = random();
    if (dice < 0.3) world.publish(random() < 0.05);
    else if (dice < 0.6) deliver();
    else if (dice < 0.75) session?.hear();
    else if (dice < 0.85) session || accept();
    else if (dice < 0.89) drop();
    else if (dice < 0.91) world.fork(world.position.offset);
    else if (dice < 0.92) world.fork(Math.max(0, world.position.offset - below(3)));
    else if (dice < 0.925) world.wipe();
    else if (dice < 0.935) world.trim(world.position.offset + 1 - below(6));
    else if (dice < 0.95) {
      // The same frame once more.
      const last = session?.toClient.at(-1);
      if (last?.type === "message") session.sends(last);
    } else if (dice < 0.97) {
      if (session) settle();
    } else if (dice < 0.98) {
      dispatchEvent(new PageTransitionEvent("pagehide"));
      const left = connection;
      begin();
      left.close();
      world.sessions = [];
      inRecovery = 0;
    }
  }
  settle();
  // A message after everything shows the last gap.
  world.publish(false);
  settle();
  between(world.value + 1);
  connection.close();
  sessionStorage.clear();
  return { faults: faults.slice(0, 5), counts };
};

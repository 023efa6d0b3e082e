/*
 * A server with the users of one group, in the page, for a random walk: users come and leave, sockets break, the client
 * joins, leaves and comes back. The server writes changes between the moment at which it reads the users for a join and
 * the moment at which it answers. The walk checks that the client knows the right users in the end, and that each event
 * says how its list differs from the one before.
 */
window.walkPresence = (module, random, steps) => {
  const GROUP = "public.walk";
  const below = (limit) => Math.floor(random() * limit);
  const faults = [];
  const counts = { events: 0, early: 0, lives: 0, left: 0 };

  // The server.
  const users = new Set(["0"]);
  /** The users who have come or left since the last change was told. */
  let untold = new Set();
  let anonymous = 0;
  /** The server's side of the newest socket: its frames on their way, and answers that are not written yet. */
  let session = null;

  const present = () => ({ users: [...users], anonymous, total: users.size });
  const flip = (user) => {
    if (!users.delete(user)) users.add(user);
    untold.add(user);
  };
  const tell = () => {
    const some = [...untold];
    untold = new Set();
    if (!session?.watches) return;
    if (session.answers.length) counts.early += 1;
    const joined = some.filter((user) => users.has(user));
    const left = some.filter((user) => !users.has(user));
    session.toClient.push({ type: "presence", group: GROUP, joined, left, anonymous, total: users.size });
  };
  const accept = () => {
    session = { socket: WebSocket.all.at(-1), read: 0, watches: false, toClient: [], answers: [] };
    session.socket.accept();
    const groups = random() < 0.3 ? [GROUP] : [];
    session.toClient.push({ type: "welcome", connection: "c", max_silence: 45, groups });
  };
  const hear = () => {
    const text = session?.socket.sent[session.read];
    // One command at a time, as the server handles them.
    if (text === undefined || session.answers.length) return false;
    session.read += 1;
    const { type, ref, presence } = JSON.parse(text);
    if (type === "join") {
      if (presence) session.watches = true;
      session.answers.push({ type: "joined", group: GROUP, ref, ...(presence && { presence: present() }) });
    } else if (type === "leave") {
      session.watches = false;
      session.answers.push({ type: "left", group: GROUP, ref });
    }
    return true;
  };
  const answer = () => {
    const frame = session?.answers.shift();
    if (frame) session.toClient.push(frame);
    return frame !== undefined;
  };
  const deliver = () => {
    const frame = session?.toClient.shift();
    if (frame) session.socket.deliver(JSON.stringify(frame));
    return frame !== undefined;
  };

  // The application.
  const connection = new module.RealtimeConnection("/ws/");
  /** The last event; null before the first one after a join. */
  let known = null;
  const same = (one, other) => [...one].sort().join() === [...other].sort().join();
  connection.addEventListener("presence", ({ detail }) => {
    counts.events += 1;
    const before = new Set(known?.users);
    const came = detail.users.filter((user) => !before.has(user));
    const left = [...before].filter((user) => !detail.users.includes(user));
    if (!same(came, detail.joined) || !same(left, detail.left)) faults.push(["differences", detail, known]);
    if (new Set(detail.users).size !== detail.users.length) faults.push(["twice", detail]);
    if (known && !came.length && !left.length && known.anonymous === detail.anonymous && known.total === detail.total) {
      faults.push(["nothing new", detail]);
    }
    known = detail;
  });
  const join = () => connection.join(GROUP, { presence: true }).catch(() => {});
  const leave = () => {
    counts.left += 1;
    connection.leave(GROUP).catch(() => {});
    known = null;
  };
  const comeBack = () => {
    counts.lives += 1;
    if (session) session.socket.drop(1006, "");
    session = null;
    connection.connect();
  };
  const settle = () => {
    if (!session) accept();
    while (deliver() || answer() || hear()) {
      // Until nothing is on its way.
    }
  };

  connection.connect();
  join();
  for (let step = 0; step < steps; step += 1) {
    const dice = random();
    if (dice < 0.25) flip(String(below(6)));
    else if (dice < 0.3) anonymous = below(3);
    else if (dice < 0.45) tell();
    else if (dice < 0.65) deliver();
    else if (dice < 0.75) hear();
    else if (dice < 0.85) answer();
    else if (dice < 0.91) session || accept();
    else if (dice < 0.94) join();
    else if (dice < 0.96) leave();
    else comeBack();
  }
  join();
  settle();
  tell();
  settle();
  const right = known && same(known.users, users) && known.anonymous === anonymous && known.total === users.size;
  if (!right) faults.push(["in the end", known, present()]);
  connection.close();
  return { faults, counts };
};

import { RealtimeConnection } from "./realtime/realtime.js";
import { Names } from "./names.js";
import { Sleep } from "./sleep.js";

const MOST_ENTRIES = 200;

/** The largest number of users of a group that the page names. */
const MOST_USERS = 200;

/** The largest number of users who are named in one line of the log. */
const MOST_NAMED = 3;

// texts.js has loaded before this module, and has the texts of the chosen language.
const { gettext, ngettext, interpolate } = window;
/** Chinese has no space between sentences. */
const SPACE = document.documentElement.lang.startsWith("zh") ? "" : " ";

/** The meaning of a close code if the server sends no reason, of the server's reasons, and of our own. */
const REASONS = {
  1000: gettext("closed normally"),
  1001: gettext("the server went away"),
  1006: gettext("the connection broke"),
  4008: gettext("no answer to the server's ping"),
  4009: gettext("the server could not send"),
  4010: gettext("this page read too slowly"),
  4029: gettext("this page sent too much"),
  4030: gettext("too many connections"),
  4501: gettext("not signed in"),
  4503: gettext("not allowed"),
  silent: gettext("the server was silent"),
  never_opened: gettext("no answer from the server"),
  closed_here: gettext("closed by this page"),
  handler_error: gettext("an error in the server"),
  handler_timeout: gettext("the server took too long"),
  cancelled: gettext("the server ended the connection"),
  server_restart: gettext("the server restarts"),
  server_lost: gettext("the server process stopped answering"),
  server_unavailable: gettext("the server cannot reach its database or Redis"),
  ping_timeout: gettext("no answer to the server's ping"),
  send_failed: gettext("the server could not send"),
  slow_consumer: gettext("this page read too slowly"),
  idle: gettext("this page sent nothing for too long"),
  rate_limited: gettext("this page sent too much"),
  too_many_connections: gettext("too many connections"),
  protocol_error: gettext("this page broke the protocol"),
  not_authenticated: gettext("not signed in"),
  forbidden: gettext("not allowed"),
  kicked: gettext("closed by an administrator"),
  superseded: gettext("a newer connection took its place"),
  too_large: gettext("the message was too large"),
};

/** The meaning of the codes of error frames and of `RealtimeError`. */
const REFUSALS = {
  bad_frame: gettext("The server did not understand this."),
  unknown_type: gettext("The server did not understand this."),
  forbidden: gettext("You are not allowed to do this."),
  bad_group: gettext("This is not the name of a group."),
  rate_limited: gettext("This page sent too much."),
  not_joined: gettext("This page is not in the group."),
  too_many_groups: gettext("This page is in as many groups as it may be."),
  no_presence: gettext("The server does not track who is in this group."),
  internal: gettext("The server could not do this now."),
  not_connected: gettext("There is no open connection."),
  disconnected: gettext("The connection was lost before the server answered."),
  closed: gettext("The connection was closed."),
  left: gettext("The group was left before it was joined."),
};

/** What a visitor reads when a right has ended, or a limit was met, by the close code. */
const ENDINGS = {
  4029: gettext("This page sent more than it may. It comes back by itself."),
  4030: gettext("There are too many connections of this user, this address or this server. This page comes back by itself."),
  4501: gettext("You are signed out."),
  4503: gettext("You may not use this connection any more."),
};

/** @param {string} id */
const element = (id) => document.getElementById(id);
const page = element("demo");
const sleep = new Sleep();
// Positions are remembered, so that a page that is loaded again gets what it missed.
const connection = new RealtimeConnection(page.dataset.socket, { WebSocket: sleep.WebSocket, remember: true });
const names = new Names(page.dataset.names, Number(page.dataset.maxNames));
/** The id of the signed-in user, or undefined. */
const me = page.dataset.user;
let messages = 0;

// Connection

const time = (at = Date.now()) => new Date(at).toLocaleTimeString("en-GB");

/** @param {string} text  With `%s` for each value. @param {unknown[]} values */
const filled = (text, ...values) => interpolate(text, values);

/** The pieces of a text with `%s` for each node. @param {string} text @param {Node[]} nodes @returns {(string | Node)[]} */
function around(text, ...nodes) {
  return text.split("%s").flatMap((piece, number) => (number < nodes.length ? [piece, nodes[number]] : [piece]));
}

function described(reason, code) {
  return REASONS[reason] ?? (reason ? reason.replaceAll("_", " ") : (REASONS[code] ?? gettext("no reason given")));
}

function describe({ code, reason }) {
  const text = described(reason, code);
  return code === null ? text : filled(gettext("%s, %s"), code, text);
}

function stateText() {
  if (sleep.asleep) return gettext("Asleep");
  if (connection.state === "connecting") return gettext("Connecting");
  if (connection.state === "open") return gettext("Open");
  return connection.state === "closed" ? gettext("Closed") : gettext("Reconnecting");
}

/** Separate from the state, so that a screen reader that announces each change does not count down. */
function waitText() {
  const until = sleep.asleep ? wakeAt : connection.retryAt;
  const seconds = until === null ? 0 : Math.ceil((until - Date.now()) / 1000);
  if (seconds <= 0) return "";
  return filled(sleep.asleep ? gettext(", %s s left") : gettext(" in %s s"), seconds);
}

/** Change only a text that differs. Otherwise a screen reader would read it again and a selection would be lost. */
function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function say(id, text) {
  put(element(id), text);
}

function showState() {
  const { state, lastClose } = connection;
  element("state").dataset.state = sleep.asleep ? "asleep" : state;
  say("state-text", stateText());
  say("connection-id", connection.id ?? gettext("none"));
  element("connection-id").classList.toggle("mono", connection.id !== null);
  say("last-close", lastClose ? filled(gettext("%s (%s)"), describe(lastClose), time(lastClose.at)) : gettext("none"));
  const focused = document.activeElement;
  element("connect").hidden = state === "connecting" || state === "open";
  element("connect").textContent = state === "waiting" ? gettext("Try now") : gettext("Connect");
  element("disconnect").hidden = state === "closed";
  element("check").hidden = element("publish").disabled = state !== "open";
  // Not `disabled`, which would take the focus away from the button while the woken page reconnects.
  element("sleep-button").setAttribute("aria-disabled", String(state !== "open" && !sleep.asleep));
  // If the focused button was hidden, move the focus to a visible one.
  if (focused instanceof HTMLElement && focused.hidden) {
    element(state === "closed" ? "connect" : "disconnect").focus();
  }
}

function showLife() {
  const { heardAt, maxSilence } = connection;
  const silence = heardAt === null ? maxSilence : Math.max(0, (Date.now() - heardAt) / 1000);
  const left = Math.max(0, maxSilence - silence);
  const heard = filled(gettext("%s s ago, at most %s s"), Math.floor(silence), maxSilence);
  say("life-text", heardAt === null ? gettext("not connected") : heard);
  const bar = element("life");
  bar.setAttribute("aria-valuemax", String(maxSilence));
  bar.setAttribute("aria-valuenow", String(Math.round(left)));
  bar.setAttribute("aria-valuetext", element("life-text").textContent);
  bar.dataset.low = String(left < maxSilence / 3);
  element("life-fill").style.width = `${(100 * left) / maxSilence}%`;
  say("state-wait", waitText());
}

async function check() {
  try {
    say("round-trip", filled(gettext("%s ms"), (1000 * (await connection.check())).toFixed(1)));
  } catch {
    say("round-trip", gettext("no answer"));
  }
}

connection.addEventListener("state", ({ detail }) => {
  showState();
  showLife();
  if (detail.state === "open") {
    note(filled(gettext("Connected as %s"), connection.id));
    check();
  } else {
    say("round-trip", gettext("not measured"));
    say("last-ping", gettext("none yet"));
  }
  // The state shows an attempt that failed. Ten lines about attempts would only push the messages away.
  const wasLost = detail.state === "waiting" && detail.previous === "open";
  if (wasLost) note(filled(gettext("Connection lost: %s"), describe(connection.lastClose)));
  if (detail.state === "closed") note(filled(gettext("Connection closed: %s"), describe(connection.lastClose)));
});
connection.addEventListener("ping", ({ detail }) => {
  say("last-ping", filled(gettext("number %s, answered at %s"), detail.n, time()));
  check();
});
connection.addEventListener("goodbye", ({ detail }) => {
  const wait = detail.retry_after === undefined ? "" : filled(gettext(", come back in %s s"), detail.retry_after);
  note(filled(gettext("The server says goodbye: %s"), described(detail.reason, null)) + wait);
});
connection.addEventListener("error", ({ detail }) => {
  const text = refusal({ code: detail.code, message: detail.detail });
  note(filled(gettext("Error: %s"), detail.group ? `${detail.group}: ${text}` : text), "bad");
});

element("connect").addEventListener("click", () => {
  // The page still shows what the user saw who is signed out now.
  if (isSignedOut()) location.reload();
  else connection.connect();
});
element("disconnect").addEventListener("click", () => connection.close());
element("check").addEventListener("click", check);
setInterval(showLife, 500);

// Rights

function isSignedOut() {
  return connection.state === "closed" && connection.lastClose?.code === 4501;
}

/** A link to the login, which leads back to this page. */
function signInLink() {
  const link = part(gettext("Sign in"), "a");
  link.href = page.dataset.login;
  return link;
}

/** Say why the server ended the connection, while that is so. The client comes back after the codes below 4500. */
function showRights() {
  const { state, lastClose } = connection;
  const code = lastClose?.code ?? 0;
  const ended = state === "closed" ? code >= 4500 : state !== "open" && code < 4500;
  const text = (ended && ENDINGS[code]) || "";
  const notice = element("rights");
  // A screen reader reads the notice again with each change.
  if (notice.dataset.text === text) return;
  notice.dataset.text = text;
  notice.replaceChildren(...(text ? [text] : []), ...(isSignedOut() ? [" ", signInLink()] : []));
  if (!isSignedOut()) return;
  element("account").replaceChildren(signInLink());
  // Who is here is not for strangers.
  pictures.clear();
  showHere();
}

connection.addEventListener("state", showRights);
connection.addEventListener("refresh", ({ detail }) => {
  note(filled(gettext("The session ends in %s s, unless it is renewed."), Math.round(detail.within)));
});
connection.addEventListener("removed", ({ detail: { group, reason } }) => {
  const text = filled(gettext("Removed from %s: %s"), group, described(reason, null));
  feedback("join-feedback", text, "bad");
  note(text, "bad");
});

// Groups

function feedback(id, text, kind = "good") {
  element(id).dataset.kind = kind;
  element(id).textContent = text;
}

function refusal({ code, message }) {
  return code ? `${REFUSALS[code] ?? (message || gettext("Refused"))} (${code})` : message;
}

function leaveLabel(group) {
  return filled(gettext("Leave %s"), group);
}

/** Join a group, and be told who is in it, if the server tracks that. */
async function joinAndSee(group) {
  try {
    await connection.join(group, { presence: true });
  } catch (error) {
    if (error.code !== "no_presence") throw error;
    await connection.join(group);
  }
}

async function join(group) {
  const later = filled(gettext("Joins %s when the connection is open."), group);
  feedback("join-feedback", connection.state === "open" ? "" : later);
  try {
    await joinAndSee(group);
    feedback("join-feedback", "");
  } catch (error) {
    feedback("join-feedback", `${group}: ${refusal(error)}`, "bad");
  }
}

async function leave(group) {
  forget(group);
  try {
    await connection.leave(group);
    feedback("join-feedback", "");
  } catch (error) {
    feedback("join-feedback", `${group}: ${refusal(error)}`, "bad");
  }
  element("join-group").focus(); // The pressed button is gone.
}

/** What happened to the history of each group since the page was loaded. */
const histories = new Map();

function historyOf(group) {
  if (!histories.has(group)) histories.set(group, { recovered: gettext("nothing yet"), reset: gettext("never") });
  return histories.get(group);
}

/** The position in short: an epoch is a random text, and its beginning is enough to see that it changed. */
function shortPosition({ epoch, offset }) {
  return `${epoch.slice(0, 6)} · ${offset}`;
}

/** One line of a group for each of: position, recovered, reset. */
function historyLines(group) {
  const position = connection.position(group);
  if (position === null) return [[gettext("History"), gettext("not kept"), ""]];
  const { recovered, reset } = historyOf(group);
  return [
    [gettext("Position"), shortPosition(position), "mono"],
    [gettext("Recovered"), recovered, ""],
    [gettext("Last reset"), reset, ""],
  ];
}

/** Show the history of one group again. Its row stays, because its button may have the focus. */
function showHistory(group) {
  const row = [...element("groups").children].find((each) => each.dataset.group === group);
  if (!row) return;
  const lines = historyLines(group);
  const list = row.querySelector("dl");
  if (list.childElementCount !== 2 * lines.length) {
    list.replaceChildren(...lines.flatMap(([name, , kind]) => [part(name, "dt"), part("", "dd", kind)]));
    for (const dd of list.querySelectorAll(".mono")) dd.translate = false;
  }
  lines.forEach(([, text], number) => put(list.children[2 * number + 1], text));
}

function groupRow(group) {
  const button = part("×", "button");
  button.type = "button";
  button.setAttribute("aria-label", leaveLabel(group));
  button.title = leaveLabel(group);
  button.addEventListener("click", () => leave(group));
  const name = part(group);
  name.translate = false;
  const row = document.createElement("li");
  row.dataset.group = group;
  row.append(name, button, document.createElement("dl"));
  return row;
}

connection.addEventListener("groups", ({ detail }) => {
  const groups = [...detail.groups].sort();
  element("groups").replaceChildren(...groups.map(groupRow));
  element("joined-groups").replaceChildren(...groups.map((group) => new Option(group)));
  element("no-groups").hidden = groups.length > 0;
  // The client learns the position from the same frame, after this event.
  queueMicrotask(() => groups.forEach(showHistory));
});
connection.addEventListener("recovered", ({ detail: { group, messages: number } }) => {
  const text =
    number === 0 ? gettext("nothing was missed") : filled(ngettext("%s message", "%s messages", number), number);
  historyOf(group).recovered = filled(gettext("%s, at %s"), text, time());
  showHistory(group);
  if (number > 0) note(filled(gettext("Recovered in %s: %s"), group, text), "good");
});
connection.addEventListener("reset", ({ detail: { group, reason } }) => {
  const text =
    reason === "refused"
      ? gettext("what this page missed is no longer kept")
      : gettext("the server lost the history");
  historyOf(group).reset = filled(gettext("%s, at %s"), text, time());
  showHistory(group);
  note(filled(gettext("Messages of %s are lost: %s"), group, text), "bad");
});

element("join-form").addEventListener("submit", (event) => {
  event.preventDefault();
  join(element("join-group").value.trim());
  element("join-group").value = "";
});

// Who is here

/** Who is in each joined group, in what order they came, and until when that was known if it is not now. */
const pictures = new Map();
/** The groups of the last event `groups`. */
let confirmed = [];
/** The last line of the log about users, which waits for their names. */
let told = Promise.resolve();

/** The picture of a group is current while the page is awake and a member. */
function isCurrent(group) {
  return !sleep.asleep && connection.state === "open" && connection.groups.includes(group);
}

/** A user, as text: a name is never markup. `bdi` keeps a name with letters of another direction from moving others. */
function user(id) {
  const name = names.get(id);
  const node = part(name ?? filled(gettext("user %s"), id), "bdi");
  node.translate = name === undefined;
  return node;
}

/** The users whom the page names: the page's own first, then in the order in which they came. */
function named({ users }) {
  const some = users.slice(0, MOST_USERS);
  return users.includes(me) ? [me, ...some.filter((id) => id !== me)] : some;
}

function summary({ anonymous, total }) {
  const users = filled(ngettext("%s user", "%s users", total), total);
  const visitors = ngettext("%s visitor not signed in", "%s visitors not signed in", anonymous);
  const others = filled(visitors, anonymous);
  let own = "%s";
  if (me === undefined && anonymous > 0) own = anonymous === 1 ? gettext("%s (you)") : gettext("%s (you among them)");
  return filled(gettext("%s in all: %s, %s"), total + anonymous, users, filled(own, others));
}

function hereRow(group) {
  const row = document.createElement("section");
  row.dataset.group = group;
  const title = part(group, "h3");
  title.translate = false;
  const list = document.createElement("ul");
  list.setAttribute("aria-label", filled(gettext("Users in %s"), group));
  row.append(title, part("", "p", "muted"), list, part("", "p", "muted"));
  return row;
}

/** Show who is in each group. The rows stay, because a list that scrolls may have the focus. */
function showHere() {
  const rows = new Map([...element("here-groups").children].map((row) => [row.dataset.group, row]));
  const since = [];
  for (const [group, row] of rows) if (!pictures.has(group)) row.remove();
  for (const group of [...pictures.keys()].sort()) {
    const row = rows.get(group) ?? hereRow(group);
    // Appending moves a row, and that would take the focus away.
    if (!rows.has(group)) element("here-groups").append(row);
    const picture = pictures.get(group);
    picture.until = isCurrent(group) ? null : (picture.until ?? Date.now());
    if (picture.until !== null) since.push(picture.until);
    row.dataset.current = String(picture.until === null);
    const [, numbers, list, rest] = row.children;
    const ids = named(picture);
    put(numbers, summary(picture));
    list.replaceChildren(...ids.map(hereItem));
    // With the keyboard, only a list that can be focused scrolls.
    if (list.scrollHeight > list.clientHeight) list.tabIndex = 0;
    else list.removeAttribute("tabindex");
    const more = picture.total - ids.length;
    put(rest, more > 0 ? filled(gettext("and %s more"), more) : "");
  }
  element("here-nowhere").hidden = pictures.size > 0;
  say("here-stale", since.length > 0 ? filled(gettext("Not current: as of %s"), time(Math.min(...since))) : "");
}

function hereItem(id) {
  const item = document.createElement("li");
  item.append(...(id === me ? around(gettext("%s (you)"), user(id)) : [user(id)]));
  return item;
}

function forget(group) {
  if (pictures.delete(group)) showHere();
}

/** Tell in the log who came to a group, or who left it. */
function tell(group, ids, one, many) {
  if (ids.length === 0) return;
  const entry = document.createElement("li");
  const who = document.createElement("span");
  if (ids.length > MOST_NAMED) {
    who.textContent = filled(many, ids.length);
  } else {
    const list = document.createElement("span");
    list.append(...ids.flatMap((id, number) => (number === 0 ? [user(id)] : [gettext(", "), user(id)])));
    who.append(...around(one, list));
  }
  const name = part(group, "b");
  name.translate = false;
  entry.append(meta(name, who));
  show(entry);
}

connection.addEventListener("presence", ({ detail: { group, users, anonymous, total } }) => {
  const before = pictures.get(group);
  const picture = { users, anonymous, total, until: null };
  pictures.set(group, picture);
  const without = (some, others) => {
    const known = new Set(others);
    return some.filter((id) => !known.has(id) && id !== me);
  };
  // The first picture of a group has no news.
  const came = before ? without(users, before.users) : [];
  const left = before ? without(before.users, users) : [];
  showHere();
  const wanted = [...new Set([...named(picture), ...(came.length > MOST_NAMED ? [] : came)])];
  const answered = names.ask(group, wanted).then(showHere);
  told = Promise.all([told, answered]).then(() => {
    tell(group, came, gettext("%s came"), ngettext("%s user came", "%s users came", came.length));
    tell(group, left, gettext("%s left"), ngettext("%s user left", "%s users left", left.length));
  });
});
connection.addEventListener("groups", ({ detail: { groups } }) => {
  // After a reconnect, groups are joined one after the other. A group that was confirmed on this socket has ended.
  const ended = connection.state === "open" ? confirmed.filter((group) => !groups.includes(group)) : [];
  confirmed = groups;
  for (const group of ended) pictures.delete(group);
  // The client knows the picture from the same frame, after this event.
  queueMicrotask(showHere);
});
connection.addEventListener("state", showHere);
// A group that this page was in, and into which the server no longer lets it.
connection.addEventListener("error", ({ detail }) => forget(detail.group));

// Publishing

/** The typed text as a JSON value, or as text if it is not JSON. */
function typed() {
  const text = element("publish-data").value;
  try {
    return { kind: gettext("sent as JSON"), data: JSON.parse(text) };
  } catch {
    return { kind: gettext("sent as text"), data: text };
  }
}

function showKind() {
  say("data-kind", typed().kind);
}

element("publish-data").addEventListener("input", showKind);
element("publish-data").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) element("publish-form").requestSubmit();
});
element("publish-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const group = element("publish-group").value.trim();
  feedback("publish-feedback", "");
  try {
    await connection.publish(group, typed().data);
    feedback("publish-feedback", filled(gettext("Published at %s"), time()));
  } catch (error) {
    feedback("publish-feedback", refusal(error), "bad");
  }
});

// Messages

function show(entry) {
  const log = element("log");
  log.prepend(entry);
  while (log.childElementCount > MOST_ENTRIES) log.lastElementChild.remove();
}

/** @param {(string | Node)[]} parts */
function meta(...parts) {
  const line = document.createElement("p");
  line.className = "meta";
  const at = document.createElement("time");
  at.textContent = time();
  line.append(at, ...parts);
  return line;
}

function part(text, name = "span", kind = "") {
  const node = document.createElement(name);
  node.textContent = text;
  node.className = kind;
  return node;
}

function count(number) {
  messages = number;
  say("count", String(number));
  element("log-card").dataset.empty = String(number === 0);
}

/** Show an event of the connection itself. */
function note(text, kind = "") {
  const entry = document.createElement("li");
  entry.append(meta(part(text, "span", kind)));
  show(entry);
}

function sender(frame) {
  if (!("from" in frame)) return gettext("from the server");
  return frame.from === null ? gettext("from an anonymous user") : filled(gettext("from user %s"), names.get(frame.from) ?? frame.from);
}

function printed(data) {
  if (typeof data === "string") return data;
  const line = JSON.stringify(data);
  return line.length <= 60 ? line : JSON.stringify(data, null, 2);
}

connection.addEventListener("message", ({ detail }) => {
  const entry = document.createElement("li");
  const group = part(detail.group, "b");
  const data = part(printed(detail.data), "pre");
  group.translate = data.translate = false;
  const mark = detail.recovered ? [part(gettext("recovered"), "span", "mark")] : [];
  entry.append(meta(group, part(sender(detail)), ...mark), data);
  if (detail.recovered) entry.className = "recovered";
  show(entry);
  count(messages + 1);
  showHistory(detail.group);
});
element("clear").addEventListener("click", () => {
  element("log").replaceChildren();
  count(0);
});

element("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(element("command").textContent);
    say("copy", gettext("Copied"));
  } catch {
    // Outside a secure context there is no clipboard. Select the text instead, so that one key copies it.
    getSelection().selectAllChildren(element("command"));
    say("copy", gettext("Selected"));
  }
  setTimeout(() => say("copy", gettext("Copy")), 2000);
});

// Sleep

/** When the page wakes, in the milliseconds of Date.now(). */
let wakeAt = 0;
let fellAt = 0;
/** The groups whose history goes on after this sleep. @type {string[]} */
let kept = [];
/** @type {ReturnType<typeof setTimeout> | undefined} */
let alarm;
/** What is known of the last sleep, until all of it is known. */
let after = null;

function seconds() {
  return Number(new FormData(element("sleep-form")).get("seconds"));
}

function expectation() {
  const { unnoticed, gone, written } = element("sleep").dataset;
  if (seconds() < Number(unnoticed)) return gettext("Too short to be noticed. Messages wait in the socket.");
  if (seconds() <= Number(gone)) {
    return gettext("The server may close the connection, above all if a message is published meanwhile.");
  }
  const sentence = gettext("The server closes the connection within %s s, or within %s s of a message.");
  return filled(sentence, Number(gone), Number(written));
}

function showSleep() {
  const { asleep } = sleep;
  say("sleep-button", asleep ? gettext("Wake now") : gettext("Sleep"));
  element("sleep-choices").disabled = asleep;
  const hint = gettext("Publish now: from the command line, or from this page in another tab.");
  say("sleep-expect", asleep ? hint : expectation());
  // A sleeping page does nothing.
  for (const id of ["connection-buttons", "groups", "join-form", "publish-form"]) element(id).inert = asleep;
  showState();
  showLife();
  showHere();
}

function fall() {
  after = null;
  kept = connection.groups.filter((group) => connection.position(group) !== null);
  fellAt = Date.now();
  wakeAt = fellAt + 1000 * seconds();
  sleep.fall();
  alarm = setTimeout(wake, wakeAt - fellAt);
  note(filled(gettext("Falls asleep for %s s"), seconds()));
  say("sleep-report", "");
  element("sleep-button").focus(); // A choice that had the focus is disabled now.
  showSleep();
}

function wake() {
  clearTimeout(alarm);
  note(gettext("Wakes up"));
  const { ended } = sleep;
  after = { wokeAt: Date.now(), ended, waited: 0, recovered: 0, missing: new Set(), lost: [] };
  // Messages that arrive during the call waited in the socket.
  const before = messages;
  sleep.wake();
  after.waited = messages - before;
  if (ended || connection.state !== "open") after.missing = new Set(kept);
  showSleep();
  reportSleep();
}

/** Say in a few sentences what happened. */
function reportSleep() {
  if (!after) return;
  const { wokeAt, ended, waited, recovered, missing, lost } = after;
  const whole = (milliseconds) => Math.round(milliseconds / 1000);
  const broken = ended !== null || missing.size > 0 || after.broken;
  after.broken = broken;
  const sentences = [filled(gettext("Slept %s s."), whole(wokeAt - fellAt))];
  if (ended) {
    const how =
      ended.code === 1006
        ? gettext("The connection broke after %s s.")
        : gettext("The server closed the connection after %s s.");
    sentences.push(filled(how, whole(ended.at - fellAt)));
  } else {
    sentences.push(broken ? gettext("The connection was lost.") : gettext("The connection stayed open."));
  }
  if (waited > 0) {
    const text = ngettext("%s message had waited in the socket.", "%s messages had waited in the socket.", waited);
    sentences.push(filled(text, waited));
  }
  const done = connection.state === "closed" || (connection.state === "open" && missing.size === 0);
  if (!done) {
    sentences.push(gettext("Reconnecting…"));
  } else if (broken && connection.state === "open") {
    const seconds = (Date.now() - wokeAt) / 1000;
    const took = seconds.toFixed(seconds < 1 ? 2 : 1);
    if (recovered > 0) {
      const text = ngettext("%s message was recovered in %s s.", "%s messages were recovered in %s s.", recovered);
      sentences.push(filled(text, recovered, took));
    } else if (kept.length === 0) {
      sentences.push(gettext("No joined group keeps history: what was published meanwhile is lost."));
    } else if (lost.length === 0) {
      sentences.push(filled(gettext("The page was back after %s s, and had missed nothing."), took));
    }
    if (lost.length > 0) sentences.push(filled(gettext("Messages of %s are lost."), lost.join(gettext(", "))));
  }
  say("sleep-report", sentences.join(SPACE));
  element("sleep-report").dataset.kind = lost.length > 0 ? "bad" : "good";
  if (done) after = null;
}

connection.addEventListener("recovered", ({ detail }) => {
  if (!after?.missing.delete(detail.group)) return;
  after.recovered += detail.messages;
  reportSleep();
});
connection.addEventListener("reset", ({ detail }) => {
  if (!after?.missing.delete(detail.group)) return;
  after.lost.push(detail.group);
  reportSleep();
});
// The server no longer lets this page into the group.
connection.addEventListener("error", ({ detail }) => {
  if (!after?.missing.delete(detail.group)) return;
  after.lost.push(detail.group);
  reportSleep();
});
connection.addEventListener("state", () => !sleep.asleep && reportSleep());
element("sleep-form").addEventListener("change", showSleep);
element("sleep-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (sleep.asleep) wake();
  else if (connection.state === "open") fall();
});

// After a reload, a browser restores the typed text.
showKind();
showSleep();
connection.connect();
join(page.dataset.group);

import { RealtimeConnection } from "./realtime/realtime.js";

const MOST_ENTRIES = 200;

/** The meaning of a close code if the server sends no goodbye, and of our own reasons. */
const REASONS = {
  1000: "closed normally",
  1001: "the server went away",
  1006: "the connection broke",
  4008: "no answer to the server's ping",
  4009: "the server could not send",
  4010: "this page read too slowly",
  silent: "the server was silent",
  never_opened: "no answer from the server",
  closed_here: "closed by this page",
};

/** @param {string} id */
const element = (id) => document.getElementById(id);
const page = element("demo");
const connection = new RealtimeConnection(page.dataset.socket);
let messages = 0;

// Connection

const time = (at = Date.now()) => new Date(at).toLocaleTimeString("en-GB");

function describe({ code, reason }) {
  const text = REASONS[reason] ?? (reason ? reason.replaceAll("_", " ") : (REASONS[code] ?? "no reason given"));
  return code === null ? text : `${code}, ${text}`;
}

function stateText() {
  if (connection.state === "connecting") return "Connecting";
  if (connection.state === "open") return "Open";
  return connection.state === "closed" ? "Closed" : "Reconnecting";
}

/** Separate from the state, so that a screen reader that announces each change does not count down. */
function waitText() {
  const seconds = connection.retryAt === null ? 0 : Math.ceil((connection.retryAt - Date.now()) / 1000);
  return seconds > 0 ? ` in ${seconds} s` : "";
}

/** Change only a text that differs. Otherwise a screen reader would read it again and a selection would be lost. */
function say(id, text) {
  if (element(id).textContent !== text) element(id).textContent = text;
}

function showState() {
  const { state, lastClose } = connection;
  element("state").dataset.state = state;
  say("state-text", stateText());
  say("connection-id", connection.id ?? "none");
  element("connection-id").classList.toggle("mono", connection.id !== null);
  say("last-close", lastClose ? `${describe(lastClose)} (${time(lastClose.at)})` : "none");
  const focused = document.activeElement;
  element("connect").hidden = state === "connecting" || state === "open";
  element("connect").textContent = state === "waiting" ? "Try now" : "Connect";
  element("disconnect").hidden = state === "closed";
  element("check").hidden = element("publish").disabled = state !== "open";
  // If the focused button was hidden, move the focus to a visible one.
  if (focused instanceof HTMLElement && focused.hidden) {
    element(state === "closed" ? "connect" : "disconnect").focus();
  }
}

function showLife() {
  const { heardAt, maxSilence } = connection;
  const silence = heardAt === null ? maxSilence : Math.max(0, (Date.now() - heardAt) / 1000);
  const left = Math.max(0, maxSilence - silence);
  say("life-text", heardAt === null ? "not connected" : `${Math.floor(silence)} s ago, at most ${maxSilence} s`);
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
    say("round-trip", `${(1000 * (await connection.check())).toFixed(1)} ms`);
  } catch {
    say("round-trip", "no answer");
  }
}

connection.addEventListener("state", ({ detail }) => {
  showState();
  showLife();
  if (detail.state === "open") {
    note(`Connected as ${connection.id}`);
    check();
  } else {
    say("round-trip", "not measured");
    say("last-ping", "none yet");
  }
  // The state shows an attempt that failed. Ten lines about attempts would only push the messages away.
  const wasLost = detail.state === "waiting" && detail.previous === "open";
  if (wasLost) note(`Connection lost: ${describe(connection.lastClose)}`);
  if (detail.state === "closed") note(`Connection closed: ${describe(connection.lastClose)}`);
});
connection.addEventListener("ping", ({ detail }) => {
  say("last-ping", `number ${detail.n}, answered at ${time()}`);
  check();
});
connection.addEventListener("goodbye", ({ detail }) => {
  const wait = detail.retry_after === undefined ? "" : `, come back in ${detail.retry_after} s`;
  note(`The server says goodbye: ${detail.reason.replaceAll("_", " ")}${wait}`);
});
connection.addEventListener("error", ({ detail }) => note(`Error ${detail.code}: ${detail.detail}`, "bad"));

element("connect").addEventListener("click", () => connection.connect());
element("disconnect").addEventListener("click", () => connection.close());
element("check").addEventListener("click", check);
setInterval(showLife, 500);

// Groups

function feedback(id, text, kind = "good") {
  element(id).dataset.kind = kind;
  element(id).textContent = text;
}

function refusal(error) {
  return error.code ? `${error.message || "Refused"} (${error.code})` : error.message;
}

async function join(group) {
  feedback("join-feedback", connection.state === "open" ? "" : `Joins ${group} when the connection is open.`);
  try {
    await connection.join(group);
    feedback("join-feedback", "");
  } catch (error) {
    feedback("join-feedback", `${group}: ${refusal(error)}`, "bad");
  }
}

async function leave(group) {
  try {
    await connection.leave(group);
    feedback("join-feedback", "");
  } catch (error) {
    feedback("join-feedback", `${group}: ${refusal(error)}`, "bad");
  }
  element("join-group").focus(); // The pressed button is gone.
}

connection.addEventListener("groups", ({ detail }) => {
  const groups = [...detail.groups].sort();
  element("groups").replaceChildren(
    ...groups.map((group) => {
      const name = document.createElement("span");
      name.textContent = group;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = "×";
      button.setAttribute("aria-label", `Leave ${group}`);
      button.title = `Leave ${group}`;
      button.addEventListener("click", () => leave(group));
      const chip = document.createElement("li");
      chip.append(name, button);
      return chip;
    }),
  );
  element("joined-groups").replaceChildren(...groups.map((group) => new Option(group)));
  element("no-groups").hidden = groups.length > 0;
});

element("join-form").addEventListener("submit", (event) => {
  event.preventDefault();
  join(element("join-group").value.trim());
  element("join-group").value = "";
});

// Publishing

/** The typed text as a JSON value, or as text if it is not JSON. */
function typed() {
  const text = element("publish-data").value;
  try {
    return { kind: "JSON", data: JSON.parse(text) };
  } catch {
    return { kind: "text", data: text };
  }
}

function showKind() {
  say("data-kind", `sent as ${typed().kind}`);
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
    feedback("publish-feedback", `Published at ${time()}`);
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
  if (!("from" in frame)) return "from the server";
  return frame.from === null ? "from an anonymous user" : `from user ${frame.from}`;
}

function printed(data) {
  if (typeof data === "string") return data;
  const line = JSON.stringify(data);
  return line.length <= 60 ? line : JSON.stringify(data, null, 2);
}

connection.addEventListener("message", ({ detail }) => {
  const entry = document.createElement("li");
  entry.append(meta(part(detail.group, "b"), part(sender(detail))), part(printed(detail.data), "pre"));
  show(entry);
  count(messages + 1);
});
element("clear").addEventListener("click", () => {
  element("log").replaceChildren();
  count(0);
});

element("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(element("command").textContent);
    say("copy", "Copied");
  } catch {
    // Outside a secure context there is no clipboard. Select the text instead, so that one key copies it.
    getSelection().selectAllChildren(element("command"));
    say("copy", "Selected");
  }
  setTimeout(() => say("copy", "Copy"), 2000);
});

// After a reload, a browser restores the typed text.
showKind();
showState();
connection.connect();
join(page.dataset.group);

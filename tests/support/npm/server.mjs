// A server of the protocol with the history of each group in memory, for the packed client in Node.
import { WebSocketServer } from "ws";

export class Server {
  histories = new Map();
  joins = [];

  async start(port = 0) {
    this.server = new WebSocketServer({ port, host: "127.0.0.1", handleProtocols: (offered) => [...offered][0] });
    this.server.on("connection", (socket) => this.#serve(socket));
    await new Promise((resolve) => this.server.once("listening", resolve));
    return this.server.address().port;
  }

  publish(group, data) {
    const history = this.histories.get(group) ?? [];
    this.histories.set(group, [...history, data]);
    const text = JSON.stringify(this.#message(group, history.length + 1));
    for (const socket of this.server.clients) if (socket.groups?.has(group)) socket.send(text);
  }

  /** Ends every socket without a close frame. */
  drop() {
    for (const socket of this.server.clients) socket.terminate();
  }

  stop() {
    this.drop();
    this.server.close();
  }

  #message(group, offset) {
    return { type: "message", group, data: this.histories.get(group)[offset - 1], epoch: "e", offset };
  }

  #serve(socket) {
    socket.groups = new Set();
    const say = (frame) => socket.send(JSON.stringify(frame));
    say({ type: "welcome", connection: "c", max_silence: 45, groups: [] });
    socket.on("message", (payload) => {
      const { type, group, ref, since, data } = JSON.parse(payload);
      if (type === "leave") {
        socket.groups.delete(group);
        say({ type: "left", group, ref });
      } else if (type === "publish") {
        this.publish(group, data);
        say({ type: "published", group, ref, epoch: "e", offset: this.histories.get(group).length });
      } else if (type === "join") {
        const offset = this.histories.get(group)?.length ?? 0;
        this.joins.push(since ?? null);
        say({ type: "joined", group, ref, epoch: "e", offset, ...(since && { recovered: true }) });
        for (let next = (since?.offset ?? offset) + 1; next <= offset; next += 1) say(this.#message(group, next));
        socket.groups.add(group);
      }
    });
  }
}

/** Waits for an event of a connection. */
export function once(connection, name, accepts = () => true) {
  return new Promise((resolve) => {
    const listen = ({ detail }) => {
      if (!accepts(detail)) return;
      connection.removeEventListener(name, listen);
      resolve(detail);
    };
    connection.addEventListener(name, listen);
  });
}

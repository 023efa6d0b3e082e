// ws: the server sends the publisher's messages to every subscriber and frames them again for each, as ws documents.
// Usage: node ws.js PORT
const { WebSocketServer, WebSocket } = require("ws");
const subscribers = new Set();
const server = new WebSocketServer({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 4096 });
server.on("connection", (socket, request) => {
  if (request.url === "/publish") {
    socket.on("message", (data) => {
      for (const subscriber of subscribers) {
        if (subscriber.readyState === WebSocket.OPEN) subscriber.send(data, { binary: false });
      }
    });
    return;
  }
  subscribers.add(socket);
  socket.on("close", () => subscribers.delete(socket));
});

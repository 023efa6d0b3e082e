// Socket.IO: subscribers are in one room. The server emits the publisher's messages to the room.
// Usage: node socketio.js PORT
const { Server } = require("socket.io");
const server = require("http").createServer();
const io = new Server(server, { transports: ["websocket"], serveClient: false });
io.on("connection", (socket) => {
  if (socket.handshake.query.publisher) {
    socket.on("publish", (text) => io.to("bench").emit("message", text));
  } else {
    socket.join("bench");
  }
});
server.listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 4096 });

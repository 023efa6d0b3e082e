/*
 * Stands in for the browser's WebSocket: the test is the network and the server.
 *
 * Like the real one it delivers what happens to a socket to that socket's handlers whenever it happens, also after
 * close(), and never ends a socket by itself: a peer that is gone answers no close handshake.
 */
class FakeWebSocket {
  static CONNECTING = 0;
  static OPEN = 1;
  static CLOSING = 2;
  static CLOSED = 3;
  static all = [];

  readyState = FakeWebSocket.CONNECTING;
  sent = [];
  onopen = null;
  onmessage = null;
  onerror = null;
  onclose = null;

  constructor(url, protocols) {
    // As in browsers, the error quotes what is not a token.
    const wrong = protocols.find((each) => !/^[\w!#$%&'*+.^`|~-]+$/.test(each));
    if (wrong !== undefined) throw new SyntaxError(`The subprotocol '${wrong}' is invalid.`);
    this.url = url;
    this.protocols = protocols;
    this.madeAt = Date.now();
    FakeWebSocket.all.push(this);
  }

  send(text) {
    this.sent.push(text);
  }

  close() {
    if (this.readyState !== FakeWebSocket.CLOSED) this.readyState = FakeWebSocket.CLOSING;
  }

  // What the network does.

  accept() {
    this.readyState = FakeWebSocket.OPEN;
    this.onopen?.({});
  }

  deliver(payload) {
    this.onmessage?.({ data: payload });
  }

  drop(code, reason) {
    this.readyState = FakeWebSocket.CLOSED;
    this.onerror?.({});
    this.onclose?.({ code, reason, wasClean: code !== 1006 });
  }
}

window.WebSocket = FakeWebSocket;

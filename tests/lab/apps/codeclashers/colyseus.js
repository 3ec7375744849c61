// Stands for Colyseus: /health, /version, and matches over websockets that end by themselves. On SIGTERM it takes no new
// match, lets those that are open end, and goes. RELEASE and FAULT (starts, health) come with the image.
'use strict';
const http = require('http');
const { createHash } = require('crypto');

if (process.env.FAULT === 'starts') { console.error('cannot find the lobby'); process.exit(3); }
for (const name of ['REDIS_PASSWORD', 'MONGODB_URI', 'COLYSEUS_RESERVATION_SECRET']) {
  if (!process.env[name]) { console.error(`${name} is not set`); process.exit(4); }
}
const release = process.env.RELEASE || 'v1';
const open = new Set();
let ending = false;

const server = http.createServer((request, response) => {
  const code = request.url === '/health' && process.env.FAULT === 'health' ? 500 : 200;
  response.writeHead(code, { Connection: ending ? 'close' : 'keep-alive' });
  response.end(request.url === '/health' ? 'ok' : release);
});

// one text frame of at most 125 bytes
const frame = (text) => Buffer.concat([Buffer.from([0x81, Buffer.byteLength(text)]), Buffer.from(text)]);

server.on('upgrade', (request, socket) => {
  const key = createHash('sha1').update(`${request.headers['sec-websocket-key']}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64');
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${key}\r\n\r\n`);
  open.add(socket);
  socket.on('data', (data) => {
    if ((data[0] & 0x0f) === 8) { socket.end(); return; }
    socket.write(frame(release));
  });
  socket.on('error', () => socket.destroy());
  socket.on('close', () => { open.delete(socket); if (ending && open.size === 0) process.exit(0); });
});

process.on('SIGTERM', () => {
  ending = true;
  console.log(`ending with ${open.size} matches`);
  server.close();
  if (open.size === 0) process.exit(0);
});
server.listen(2567, () => console.log(`colyseus ${release}`));

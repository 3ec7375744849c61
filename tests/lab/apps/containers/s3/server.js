'use strict';
// An S3 server that is configured like a MinIO container: `server /data`, MINIO_ROOT_USER, MINIO_ROOT_PASSWORD,
// /minio/health/live. s3rver takes any version 4 signature for a good one, and requests without any; this does not.
const { createHash, createHmac, timingSafeEqual } = require('crypto');
const S3rver = require('s3rver');
const Account = require('s3rver/lib/models/account');

const [command, directory = '/data'] = process.argv.slice(2);
const user = process.env.MINIO_ROOT_USER || 'minioadmin';
const password = process.env.MINIO_ROOT_PASSWORD || 'minioadmin';
if (command !== 'server') throw new Error(`unknown command ${command}: expected server DIRECTORY`);
if (user.length < 3 || password.length < 8) throw new Error('MINIO_ROOT_USER needs 3 characters, MINIO_ROOT_PASSWORD 8');

Account.registry.clear();
new Account(1, 'root').createKeyPair(user, password);

const encode = (text) => encodeURIComponent(text).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);
const hmac = (key, text) => createHmac('sha256', key).update(text).digest();

// refusal(context): the S3 error code for a request that is not signed with the account's secret, or ''
function refusal(context) {
  const [path, query = ''] = context.req.url.split('?');
  const parameters = query
    .split('&')
    .filter(Boolean)
    .map((pair) => pair.split('=').map((text) => encode(decodeURIComponent(text))))
    .map(([name, value = '']) => [name, value]);
  const given = Object.fromEntries(parameters.map(([name, value]) => [name, decodeURIComponent(value)]));
  const inQuery = given['X-Amz-Algorithm'] === 'AWS4-HMAC-SHA256';
  const header = /^AWS4-HMAC-SHA256 +Credential=([^,]+), *SignedHeaders=([^,]+), *Signature=([0-9a-f]+)$/.exec(context.get('authorization'));
  if (!inQuery && !header) return 'AccessDenied';
  const [credential, signed, signature] = inQuery
    ? [given['X-Amz-Credential'], given['X-Amz-SignedHeaders'], given['X-Amz-Signature']]
    : header.slice(1);
  const [key, day, region, service] = credential.split('/');
  if (key !== user) return 'InvalidAccessKeyId';
  const at = inQuery ? given['X-Amz-Date'] : context.get('x-amz-date');
  const since = Date.now() - Date.parse(at.replace(/^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/, '$1-$2-$3T$4:$5:$6Z'));
  if (inQuery ? since > Number(given['X-Amz-Expires']) * 1000 : !(Math.abs(since) < 900000)) return 'AccessDenied';
  const request = [
    context.method,
    path.split('/').map((part) => encode(decodeURIComponent(part))).join('/'),
    parameters
      .filter(([name]) => name !== 'X-Amz-Signature')
      .map((pair) => pair.join('='))
      .sort()
      .join('&'),
    ...signed.split(';').map((name) => `${name}:${context.get(name).trim().replace(/ +/g, ' ')}`),
    '',
    signed,
    inQuery ? 'UNSIGNED-PAYLOAD' : context.get('x-amz-content-sha256'),
  ].join('\n');
  const scope = `${day}/${region}/${service}/aws4_request`;
  const text = ['AWS4-HMAC-SHA256', at, scope, createHash('sha256').update(request).digest('hex')].join('\n');
  const secret = [day, region, service, 'aws4_request'].reduce(hmac, `AWS4${password}`);
  const expected = hmac(secret, text);
  const seen = Buffer.from(signature, 'hex');
  return seen.length === expected.length && timingSafeEqual(seen, expected) ? '' : 'SignatureDoesNotMatch';
}

const server = new S3rver({ address: '0.0.0.0', port: 9000, directory, silent: true, vhostBuckets: false });
server.middleware.unshift(async (context, next) => {
  if (/^\/minio\/health\/(live|ready)$/.test(context.path)) {
    context.body = '';
    return;
  }
  const code = refusal(context);
  if (code) {
    context.status = 403;
    context.type = 'application/xml';
    context.body = `<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>${code}</Code><Message>Refused.</Message></Error>`;
    return;
  }
  await next();
});
server.run().then(({ address, port }) => console.log(`S3 server at ${address}:${port}, objects in ${directory}`));
for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => process.exit(0));

// An identity provider (OpenID Connect) on loopback, with the npm package oidc-provider: people with fixed passwords.
// node provider.mjs PACKAGE_FOLDER PORT REDIRECT_URI
import { createServer } from 'node:http';
import { pathToFileURL } from 'node:url';

const [folder, port, redirect] = process.argv.slice(2);
const { Provider } = await import(pathToFileURL(`${folder}/node_modules/oidc-provider/lib/index.js`));

const people = {
  alice: { password: 'wonderland', email: 'alice@example.com', groups: ['covey-operators'] },
  bob: { password: 'builder', email: 'bob@example.com', groups: ['gardeners'] },
};
const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [{ client_id: 'covey', client_secret: 'secret-of-the-client', redirect_uris: [redirect] }],
  claims: { openid: ['sub'], email: ['email'], groups: ['groups'] },
  cookies: { keys: ['only-a-test'] },
  features: { devInteractions: { enabled: false } },
  interactions: { url: (ctx, interaction) => `/interaction/${interaction.uid}` },
  findAccount: (ctx, id) => ({
    accountId: id,
    claims: () => ({ sub: id, email: people[id].email, groups: people[id].groups }),
  }),
  // People are not asked whether the dashboard may know who they are: it is their own.
  loadExistingGrant: async (ctx) => {
    const grant = new ctx.oidc.provider.Grant({
      clientId: ctx.oidc.client.clientId,
      accountId: ctx.oidc.session.accountId,
    });
    grant.addOIDCScope('openid email groups');
    await grant.save();
    return grant;
  },
});

const answer = provider.callback();
const form = '<form method="post"><input name="login"><input name="password" type="password"><button>Sign in</button></form>';

createServer(async (request, response) => {
  if (!request.url.startsWith('/interaction/')) {
    answer(request, response);
    return;
  }
  if (request.method !== 'POST') {
    response.setHeader('content-type', 'text/html');
    response.end(form);
    return;
  }
  let body = '';
  for await (const chunk of request) body += chunk;
  const given = new URLSearchParams(body);
  const person = Object.hasOwn(people, given.get('login')) ? people[given.get('login')] : undefined;
  if (person === undefined || person.password !== given.get('password')) {
    response.statusCode = 403;
    response.end(form);
    return;
  }
  await provider.interactionFinished(request, response, { login: { accountId: given.get('login') } });
}).listen(Number(port), '127.0.0.1');

// The test ladder: public MCP clients against a solekey built from this
// checkout, on every transport they have. Started by ladder.sh.
//
// Each row starts its client in a process of its own with an empty HOME and a
// time limit. Keys lie in files that only this user can read, or in the
// environment of the client that needs it there, and are blotted out of what
// is printed. Rows called control must fail inside to pass: they show that
// the checks bite.
import { execFile, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';

process.umask(0o077);
const quick = process.argv.includes('--quick');
const here = import.meta.dirname;
const repo = path.resolve(here, '../../..');
const bin = path.join(here, 'node_modules/.bin');
const work = mkdtempSync(path.join(os.tmpdir(), 'solekey-ladder-'));
const home = path.join(work, 'home');
const solekey = path.join(work, 'solekey');
const fixture = path.join(work, 'fixture');
const gosdk = path.join(work, 'gosdk');
const value = randomBytes(8).toString('hex');
const secrets = [];

// ---- processes

const servers = [];
const environment = (home) => ({ PATH: `${bin}${path.delimiter}${process.env.PATH}`, HOME: home, SOLEKEY_NO_KEYRING: '1' });
const blot = (text) => secrets.reduce((text, s) => text.replaceAll(s, '[key]'), text).replace(/\x1b\[\d*m/g, '');

class Skip extends Error {}

// run returns { code, out, err, all } of a finished process; code is null
// when it was stopped by the time limit.
function run(cmd, args, { env = {}, cwd, input, seconds = 60 } = {}) {
  const own = mkdtempSync(path.join(work, 'client-'));
  return new Promise((resolve) => {
    const child = spawn(cmd, args, { env: { ...environment(own), ...env }, cwd: cwd ?? own, detached: true });
    const said = { out: '', err: '', all: '' };
    const keep = (name) => (chunk) => { said[name] += chunk; said.all += chunk; };
    child.stdout.on('data', keep('out'));
    child.stderr.on('data', keep('err'));
    const stop = () => { try { process.kill(-child.pid, 'SIGKILL'); } catch { /* it is gone */ } };
    const limit = setTimeout(stop, seconds * 1000);
    child.on('error', (e) => { said.all += e.message; });
    child.on('close', (code) => { clearTimeout(limit); stop(); resolve({ code, ...said }); });
    child.stdin.on('error', () => {});
    child.stdin.end(input ?? '');
  });
}

// must is run for what has to succeed.
async function must(cmd, args, options) {
  const r = await run(cmd, args, options);
  if (r.code !== 0) throw new Error(`${path.basename(cmd)} ${args[0]}: exit ${r.code}: ${tail(r.all)}`);
  return r.out;
}

const tail = (text) => text.trim().slice(-400);

function expect(text, ...parts) {
  for (const p of parts) if (!(p instanceof RegExp ? p.test(text) : text.includes(p))) throw new Error(`no ${p} in: ${tail(text)}`);
}

// serve starts a server and waits for the line that says it is ready.
function serve(cmd, args, ready) {
  return new Promise((resolve, reject) => {
    const child = spawn(cmd, args, { env: environment(home), cwd: work });
    servers.push(child);
    let said = '';
    for (const stream of [child.stdout, child.stderr]) {
      stream.on('data', (chunk) => {
        said += chunk;
        if (ready.test(said)) resolve(said.match(ready));
      });
    }
    setTimeout(() => reject(new Error(`${args[0]} is not ready: ${tail(said)}`)), 20_000).unref();
    child.on('exit', () => reject(new Error(`${args[0]} ended: ${tail(said)}`)));
  });
}

const freePort = () => new Promise((resolve) => {
  const s = net.createServer().listen(0, '127.0.0.1', () => { const { port } = s.address(); s.close(() => resolve(port)); });
});

// file writes a file into dir, by default one of its own: rows run side by
// side.
function file(name, text, dir = mkdtempSync(path.join(work, 'file-'))) {
  const at = path.join(dir, name);
  mkdirSync(path.dirname(at), { recursive: true });
  writeFileSync(at, typeof text === 'string' ? text : JSON.stringify(text));
  return at;
}

// ---- what is tested

const keys = {};
let url; // of the served endpoint, without a path

async function build() {
  const go = (args, cwd) => new Promise((resolve, reject) => execFile('go', args, { cwd }, (e, _, err) => (e ? reject(new Error(`go ${args[0]}: ${tail(err)}`)) : resolve())));
  await go(['build', '-o', solekey, './cmd/solekey'], repo);
  await go(['test', '-c', '-o', fixture, './mcp'], repo);
  const sdk = path.resolve(here, '../gosdk');
  if (await go(['mod', 'download'], sdk).then(() => true, () => false)) await go(['build', '-o', gosdk, '.'], sdk);
}

async function start() {
  mkdirSync(home);
  const own = (args, input) => must(solekey, args, { env: { HOME: home }, input });
  const elsewhere = (args) => must(solekey, args, { env: { HOME: path.join(work, 'other') } });
  mkdirSync(path.join(work, 'other'));
  const keep = (name, text) => { secrets.push(text.trim()); keys[name] = file('key', text.trim()); };
  await own(['init', '--root', 'file', '--no-recovery']);
  keep('good', await own(['identity', 'create', 'clients', '--print-key']));
  keep('leaver', await own(['identity', 'create', 'leaver', '--print-key']));
  await own(['put', 'demo', '--identity', 'clients', '--stdin'], value);
  await elsewhere(['init', '--root', 'file', '--no-recovery']);
  keep('other', await elsewhere(['identity', 'create', 'clients', '--print-key']));
  url = (await serve(solekey, ['serve', '--rate', '0', '--listen', '127.0.0.1:0'], /(http:\/\/127\.0\.0\.1:\d+)\/mcp/))[1];
}

const key = (name) => readFileSync(keys[name], 'utf8');
const bearer = (name) => ({ Authorization: 'Bearer ' + key(name) });

// stdio is the command that serves a key on stdin and stdout. The store is in
// a home that is not the client's.
const stdio = (name) => ['env', `HOME=${home}`, 'SOLEKEY_NO_KEYRING=1', solekey, 'mcp', '--quiet', '--api-key-file', keys[name]];

// fixtureServer starts the conformance fixture once per kind.
const fixtures = {};
const fixtureServer = (...flags) => fixtures[flags] ??= (async () => {
  const [addr, open] = [`127.0.0.1:${await freePort()}`, `127.0.0.1:${await freePort()}`];
  await serve(fixture, ['-test.run', '^TestFixtureServer$', '-test.timeout', '0', '-test.v', '-fixture.addr', addr, '-fixture.open', open, ...flags], /serving on[^]*serving on/);
  return `http://${open}/mcp`;
})();

// ear passes requests on and hears which revision a client speaks.
function ear() {
  const heard = {};
  const listen = (transport, text) => {
    for (const m of text.matchAll(/protocolversion"?: ?"([\d-]{10})"/gi)) heard[transport] = m[1];
  };
  return new Promise((resolve) => {
    const s = http.createServer(async (q, r) => {
      const body = Buffer.concat(await q.toArray());
      listen(q.url.startsWith('/mcp') ? 'http' : 'sse', body.toString());
      const out = http.request(url + q.url, { method: q.method, headers: q.headers }, (a) => { r.writeHead(a.statusCode, a.headers); a.pipe(r); });
      out.on('error', () => r.destroy());
      r.on('close', () => out.destroy());
      out.end(body);
    }).listen(0, '127.0.0.1', () => {
      s.unref();
      const log = path.join(mkdtempSync(path.join(work, 'ear-')), 'stdin');
      resolve({
        url: `http://127.0.0.1:${s.address().port}`,
        stdio: (name) => ['sh', '-c', 'tee -a "$0" | "$@"', log, ...stdio(name)],
        revision(transport) {
          if (transport === 'stdio' && existsSync(log)) listen('stdio', readFileSync(log, 'utf8'));
          return heard[transport];
        },
      });
    });
  });
}

// ---- rows

const rows = [];
const version = (name) => JSON.parse(readFileSync(path.join(here, 'node_modules', name, 'package.json'), 'utf8')).version;

// row adds one line of the table. check returns { revision, result } or throws.
function row(client, pkg, transport, check, { full = false } = {}) {
  if (!full || !quick) rows.push({ client, version: pkg && version(pkg), transport, check });
}

const node = path.join(bin, 'node');
const once = (f) => { let p; return () => p ??= f(); };

// conformance runs the official suite against the fixture.
function conformance() {
  const pkg = '@modelcontextprotocol/conformance';
  const suite = async (flags, ...args) => run(node, [path.join(bin, 'conformance'), 'server', '--url', await fixtureServer(...flags), '--timeout', '10000', '-o', mkdtempSync(path.join(work, 'suite-')), ...args]);
  const baseline = ['--expected-failures', path.resolve(here, '../conformance.yml')];
  const passed = (r) => r.out.match(/Total: (\d+) passed/)?.[1] ?? r.out.match(/(?:Passed|passed): (\d+)/)?.[1];
  for (const revision of ['2025-11-25', '2026-07-28']) {
    row('MCP conformance suite', pkg, 'http', async () => {
      const r = await suite([], '--requirements', revision, ...baseline);
      if (r.code !== 0) throw new Error(r.all.match(/(Stale baseline|Unexpected failures)[^]*/)?.[0] ?? tail(r.all));
      expect(r.out, 'Baseline check passed');
      return { revision, result: `${passed(r)} checks; all that fail are in conformance.yml (${r.out.match(/^ {2}~ /gm).length})` };
    });
    row('control: the suite without its baseline', pkg, 'http', async () => {
      const r = await suite([], '--requirements', revision);
      if (r.code !== 1) throw new Error(`exit ${r.code}, want 1`);
      return { revision, result: 'it fails' };
    }, { full: true });
  }
  const bare = { '2025-11-25': ['server-initialize', 'ping', 'dns-rebinding-protection', 'tools-list'], '2026-07-28': ['dns-rebinding-protection', 'tools-list', 'http-header-validation'] };
  for (const [revision, scenarios] of Object.entries(bare)) {
    for (const scenario of scenarios) {
      row(`MCP conformance suite, the product's own tools: ${scenario}`, pkg, 'http', async () => {
        const r = await suite(['-fixture.bare'], '--scenario', scenario, '--spec-version', revision);
        if (r.code !== 0) throw new Error(`exit ${r.code}: ${tail(r.all)}`);
        return { revision, result: `${passed(r)} checks` };
      }, { full: true });
    }
  }
}

// facts is what sdk.mjs and the Go client are told.
const facts = (changes) => JSON.stringify({
  urls: { http: `${url}/mcp`, sse: `${url}/sse` }, key: keys.good, otherKey: keys.other, label: 'demo', value,
  commands: Object.fromEntries(Object.entries(bridges).map(([name, command]) => [name, [command('good'), command('other')]])), ...changes,
});
const bridges = { stdio };
const clean = (r) => {
  if (r.code !== 0) throw new Error(r.code === null ? 'no end within its time' : tail(r.all));
  const { revision, refusal } = JSON.parse(r.out);
  return { revision, result: `reads; a refusal's hint arrives; another key ${refusal}` };
};
const sdk = async (args, changes) => run(node, [path.join(here, 'sdk.mjs'), ...args], { env: { LADDER: facts(changes) } });

function libraries() {
  const of = (client, pkg, name, list, options) => {
    for (const args of list) {
      row(client + (args[1] ? `, ${args[1]}` : ''), pkg, args[0], async () => clean(await sdk([name, ...args])), options);
    }
  };
  of('TypeScript SDK v1', '@modelcontextprotocol/sdk', 'v1', [['http'], ['sse'], ['stdio']]);
  for (const mode of ['legacy', 'auto', 'pinned']) {
    of('TypeScript SDK v2', '@modelcontextprotocol/client', 'v2', [['http', mode], ['sse', mode], ['stdio', mode]]);
  }
  of('AI SDK', '@ai-sdk/mcp', 'ai', [['http'], ['sse'], ['stdio']], { full: true });
  of('LangChain adapters', '@langchain/mcp-adapters', 'langchain', [['http'], ['sse'], ['stdio']], { full: true });

  for (const transport of ['http', 'sse', 'stdio']) {
    row('Go SDK', null, transport, async () => {
      if (!existsSync(gosdk)) throw new Skip('the Go module proxy does not give the SDK');
      return clean(await run(gosdk, [transport], { env: { LADDER: facts() } }));
    });
  }

  const lies = {
    'the value is another one': [{ value: 'another' }, 'value: '],
    'the label does not exist': [{ label: 'absent' }, 'value: '],
    'the key is not of this store': [() => ({ key: keys.other }), 'value: |401|unauthorized'],
    'every key opens the vault': [() => ({ otherKey: keys.good }), 'another key: '],
  };
  for (const [lie, [changes, words]] of Object.entries(lies)) {
    row(`control: ${lie}`, '@modelcontextprotocol/sdk', 'http', async () => {
      const r = await sdk(['v1', 'http'], typeof changes === 'function' ? changes() : changes);
      if (r.code !== 1) throw new Error(`the check exits ${r.code}`);
      expect(r.out, new RegExp(words));
      return { result: 'the check fails' };
    });
  }
}

// remotes are the bridges from stdio to the endpoint, with a client in front.
function remotes() {
  bridges['mcp-remote'] = (name) => [node, path.join(bin, 'mcp-remote'), `${url}/mcp`, '--header-file', file('header', `Authorization: Bearer ${key(name)}\n`), '--transport', 'http-only', '--allow-http', '--silent'];
  bridges.profile = (name) => ['env', `HOME=${path.join(work, 'remote')}`, 'SOLEKEY_NO_KEYRING=1', solekey, 'mcp', '--quiet', '--profile', name];
  row('mcp-remote, TypeScript SDK v1', 'mcp-remote', 'stdio to http', async () => {
    const r = clean(await sdk(['v1', 'mcp-remote']));
    const [cmd, ...args] = bridges['mcp-remote']('other');
    const refused = await run(cmd, args.filter((a) => a !== '--silent'));
    expect(refused.err, 'Put the agent key into the Authorization header');
    return { ...r, result: `${r.result}; stderr has our words` };
  }, { full: true });
  const profiles = once(async () => {
    mkdirSync(path.join(work, 'remote'));
    for (const name of ['good', 'other']) {
      const r = await run(solekey, ['profile', 'add', name, '--remote', `${url}/mcp`, '--api-key-file', keys[name], '--no-check'], { env: { HOME: path.join(work, 'remote') } });
      if (/unknown flag|unknown command/.test(r.all)) throw new Skip('solekey has no remote profiles yet');
      if (r.code !== 0) throw new Error(tail(r.all));
    }
  });
  for (const mode of ['legacy', 'auto']) {
    row(`solekey mcp --profile, TypeScript SDK v2, ${mode}`, '@modelcontextprotocol/client', 'stdio to http', async () => {
      await profiles();
      return clean(await sdk(['v2', 'profile', mode]));
    });
  }
}

// inspector runs the MCP Inspector's command line; its exit codes are its word.
function inspector() {
  const pkg = '@modelcontextprotocol/inspector';
  const config = (name, at) => file('inspector.json', { mcpServers: {
    http: { type: 'streamable-http', url: at ?? `${url}/mcp`, headers: bearer(name) },
    sse: { type: 'sse', url: `${url}/sse`, headers: bearer(name) },
    stdio: { type: 'stdio', command: stdio(name)[0], args: stdio(name).slice(1) },
  } });
  const inspect = (config, server, era, ...args) => run(node, [path.join(bin, 'mcp-inspector'), '--cli', '--config', config, '--server', server, '--protocol-era', era, '--format', 'json', '-q', '--stored-auth-only', ...args], { env: { MCP_INSPECTOR_SECRET_STORE: 'memory' } });
  const exits = (r, code) => { if (r.code !== code) throw new Error(`exit ${r.code}, want ${code}: ${tail(r.all)}`); };
  const revision = (era) => (era === 'modern' ? '2026-07-28' : '2025-11-25');
  const read = (label) => ['--method', 'tools/call', '--tool-name', 'get_secret', '--tool-arg', `label=${label}`];
  for (const transport of ['http', 'sse', 'stdio']) {
    for (const era of ['legacy', 'modern']) {
      row(`MCP Inspector, ${era}`, pkg, transport, async () => {
        const r = await inspect(config('good'), transport, era, '--method', 'tools/list', '--strict');
        exits(r, 0);
        return { revision: revision(era), result: `tools/list --strict: ${JSON.parse(r.out).result.tools.length} portable tools` };
      }, { full: transport === 'sse' });
    }
  }
  for (const era of ['legacy', 'modern']) {
    row(`MCP Inspector, ${era}`, pkg, 'http', async () => {
      const served = await inspect(config('good'), 'http', era, ...read('demo'));
      exits(served, 0);
      expect(served.out, value);
      const refused = await inspect(config('good'), 'http', era, ...read('absent'));
      exits(refused, 5);
      expect(refused.out, 'not_found');
      exits(await inspect(config('other'), 'http', era, '--method', 'tools/list'), 3);
      return { revision: revision(era), result: 'reads; exit 5 for a refusal, 3 for another key' };
    }, { full: true });
  }
  row('control: MCP Inspector, tools with a boolean schema', pkg, 'http', async () => {
    exits(await inspect(config('good', await fixtureServer()), 'http', 'legacy', '--method', 'tools/list', '--strict'), 6);
    return { revision: revision('legacy'), result: 'exit 6: a schema is not portable' };
  }, { full: true });
  row('MCP Inspector, load', pkg, 'http', async () => {
    const r = await inspect(config('good'), 'http', 'legacy', ...read('demo'), '--load', '--load-duration', '5', '--load-concurrency', '8');
    exits(r, 0);
    const load = JSON.parse(r.out).result ?? JSON.parse(r.out);
    if (load.ok !== load.requests || load.requests < 100) throw new Error(`${load.ok} of ${load.requests} calls answered`);
    return { revision: revision('legacy'), result: `${load.requests} calls of 8 callers in 5 s, all answered; p50 ${load.latencyMs.p50.toFixed(0)} ms` };
  }, { full: true });
}

// project is the directory a client is started in: in HOME itself some see no
// configuration.
function project(client, files) {
  const own = mkdtempSync(path.join(work, `${client}-`));
  for (const [name, text] of Object.entries(files)) file(name, text, own);
  mkdirSync(path.join(own, 'project'));
  return { env: { HOME: own }, cwd: path.join(own, 'project') };
}

// agents are the coding agents; none of them is logged in.
function agents() {
  const headers = { Authorization: 'Bearer ${LADDER_KEY}' };
  const listed = (client, pkg, list) => {
    for (const transport of ['http', 'sse', 'stdio']) {
      row(client, pkg, transport, async () => {
        const { said, heard } = await list();
        expect(said, new RegExp(`${transport}: .*(✔|-) Connected`));
        return { revision: heard.revision(transport), result: 'mcp list: Connected' };
      });
    }
  };

  const claude = (e) => project('claude', { '.claude.json': { mcpServers: {
    stdio: { type: 'stdio', command: e.stdio('good')[0], args: e.stdio('good').slice(1) },
    http: { type: 'http', url: `${e.url}/mcp`, headers },
    sse: { type: 'sse', url: `${e.url}/sse`, headers },
  } } });
  const claudeList = async (name) => {
    const heard = await ear();
    const c = claude(heard);
    const r = await run(path.join(bin, 'claude'), ['mcp', 'list'], { ...c, env: { ...c.env, LADDER_KEY: key(name) } });
    return { said: r.all, heard };
  };
  listed('Claude Code', '@anthropic-ai/claude-code', once(() => claudeList('good')));
  row('Claude Code, a revoked key', '@anthropic-ai/claude-code', 'http', async () => {
    expect((await claudeList('leaver')).said, /http: .*✔ Connected/, /sse: .*✔ Connected/);
    await must(solekey, ['identity', 'revoke', 'leaver', '--yes'], { env: { HOME: home } });
    const { said } = await claudeList('leaver');
    expect(said, /http: .*HTTP 401.*This key has been revoked\./, /sse: .*HTTP 401/);
    return { result: 'Connected; after the revoke HTTP 401 and "This key has been revoked."' };
  }, { full: true });
  row('Claude Code, another key', '@anthropic-ai/claude-code', 'http', async () => {
    expect((await claudeList('other')).said, /http: .*HTTP 401.*No valid agent key\./, /sse: .*HTTP 401/);
    return { result: 'HTTP 401 and "No valid agent key."' };
  }, { full: true });

  const gemini = async (name) => {
    const heard = await ear();
    const c = project('gemini', { '.gemini/settings.json': { security: { folderTrust: { enabled: false } }, mcpServers: {
      stdio: { command: heard.stdio(name)[0], args: heard.stdio(name).slice(1) },
      http: { httpUrl: `${heard.url}/mcp`, headers },
      sse: { type: 'sse', url: `${heard.url}/sse`, headers },
    } } });
    const r = await run(node, [path.join(bin, 'gemini'), 'mcp', 'list'], { ...c, env: { ...c.env, LADDER_KEY: key(name) } });
    return { said: r.all, heard };
  };
  listed('Gemini CLI', '@google/gemini-cli', once(() => gemini('good')));
  row('Gemini CLI, another key', '@google/gemini-cli', 'http', async () => {
    expect((await gemini('other')).said, /http: .*- Disconnected/, /sse: .*- Disconnected/);
    return { result: 'mcp list: Disconnected' };
  }, { full: true });

  const codex = async (name) => {
    const heard = await ear();
    const [command, ...args] = heard.stdio('good');
    const c = project('codex', { '.codex/config.toml': `[mcp_servers.stdio]\ncommand = ${JSON.stringify(command)}\nargs = ${JSON.stringify(args)}\n[mcp_servers.http]\nurl = "${heard.url}/mcp"\nbearer_token_env_var = "LADDER_KEY"\n` });
    return { found: await codexTools({ ...c, env: { ...environment(c.env.HOME), LADDER_KEY: key(name) } }), heard };
  };
  const served = once(() => codex('good'));
  for (const transport of ['http', 'stdio']) {
    row('Codex', '@openai/codex', transport, async () => {
      const { found, heard } = await served();
      expect(found[transport] ?? '', 'get_secret', 'get_totp_code', 'list_labels');
      return { revision: heard.revision(transport), result: 'app-server: finds the three tools' };
    });
  }
  row('Codex, another key', '@openai/codex', 'http', async () => {
    const { found } = await codex('other');
    if (found.http) throw new Error(`it finds ${found.http}`);
    return { result: 'app-server: finds no tool' };
  }, { full: true });
}

// codexTools asks Codex's own app server which tools it found, by server.
function codexTools(options) {
  return new Promise((resolve, reject) => {
    const codex = spawn(node, [path.join(bin, 'codex'), 'app-server'], { ...options, detached: true, stdio: ['pipe', 'pipe', 'ignore'] });
    const stop = () => { try { process.kill(-codex.pid, 'SIGKILL'); } catch { /* it is gone */ } };
    const limit = setTimeout(() => { stop(); reject(new Error('no answer in 60 s')); }, 60_000);
    const send = (message) => codex.stdin.write(JSON.stringify(message) + '\n');
    codex.on('error', reject);
    createInterface({ input: codex.stdout }).on('line', (line) => {
      const message = JSON.parse(line);
      if (message.id === 1) {
        send({ method: 'initialized' });
        send({ id: 2, method: 'mcpServerStatus/list', params: {} });
      }
      if (message.id === 2) {
        clearTimeout(limit);
        stop();
        resolve(Object.fromEntries(message.result.data.map((s) => [s.name, Object.keys(s.tools).join()])));
      }
    });
    send({ id: 1, method: 'initialize', params: { clientInfo: { name: 'ladder', version: '1' } } });
  });
}

// ---- the run

async function climb(r) {
  const begun = Date.now();
  try {
    Object.assign(r, { ok: true }, await r.check());
  } catch (e) {
    Object.assign(r, e instanceof Skip ? { result: `skipped: ${e.message}`, skipped: true } : { result: `FAIL: ${blot(e.message).replaceAll(/\s+/g, ' ')}` });
  }
  r.seconds = ((Date.now() - begun) / 1000).toFixed(1);
  console.log([r.ok ? 'ok  ' : r.skipped ? 'skip' : 'FAIL', r.client, r.version, r.transport, r.revision, r.result, `${r.seconds} s`].filter(Boolean).join('  '));
}

function table() {
  const line = (cells) => `| ${cells.join(' | ')} |`;
  const count = (what) => rows.filter(what).length;
  return [
    `Run of ${new Date().toISOString().slice(0, 10)} on ${os.platform()}/${os.arch()}: ${count((r) => r.ok)} of ${rows.length} rows hold, ${count((r) => r.skipped)} skipped.`, '',
    line(['Client', 'Version', 'Transport', 'Revision', 'Result', 's']), line(['---', '---', '---', '---', '---', '---:']),
    ...rows.map((r) => line([r.client, r.version ?? '', r.transport, r.revision ?? '', r.result.replaceAll('|', '\\|'), r.seconds])),
  ].join('\n');
}

async function main() {
  const begun = Date.now();
  await build();
  await start();
  remotes();
  conformance();
  libraries();
  inspector();
  agents();
  const goSDK = readFileSync(path.resolve(here, '../gosdk/go.mod'), 'utf8').match(/go-sdk v(\S+)/)[1];
  for (const r of rows) if (r.client === 'Go SDK') r.version = goSDK;
  const waiting = [...rows];
  const lane = async () => { while (waiting.length > 0) await climb(waiting.shift()); };
  await Promise.all([lane(), lane()]);
  const failed = rows.filter((r) => !r.ok && !r.skipped).length;
  console.log(`${rows.length} rows, ${failed} failed, ${rows.filter((r) => r.skipped).length} skipped, ${((Date.now() - begun) / 1000).toFixed(0)} s`);
  if (process.argv.includes('--write')) {
    const doc = path.join(repo, 'docs/CLIENTS.md');
    writeFileSync(doc, readFileSync(doc, 'utf8').replace(/(<!-- ladder -->\n)[^]*(<!-- end -->)/, (_, a, b) => `${a}${table()}\n${b}`));
  }
  return failed > 0 ? 1 : 0;
}

function leave(code) {
  for (const s of servers) s.kill('SIGKILL');
  rmSync(work, { recursive: true, force: true, maxRetries: 5 });
  process.exit(code);
}

for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => leave(1));
leave(await main().catch((e) => { console.log(blot(e.message)); return 1; }));

// Connects real MCP clients to a real vault over stdio, each by its own check
// and without a login:  npm ci && node check.mjs PATH/TO/solekey
import { execFileSync, spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { tmpdir } from 'node:os';
import path from 'node:path';

const solekey = path.resolve(process.argv[2] ?? 'bin/solekey');
const bin = path.resolve(import.meta.dirname, 'node_modules/.bin');
const home = mkdtempSync(path.join(tmpdir(), 'solekey-clients-'));
const env = { PATH: `${bin}${path.delimiter}${process.env.PATH}`, HOME: home, SOLEKEY_NO_KEYRING: '1' };
const sh = (cmd, args, options = {}) =>
  execFileSync(cmd, args, { env, cwd: home, encoding: 'utf8', timeout: 120_000, stdio: ['pipe', 'pipe', 'pipe'], ...options });

sh(solekey, ['init', '--root', 'file', '--no-recovery']);
sh(solekey, ['identity', 'create', 'clients']);
sh(solekey, ['put', 'demo', '--identity', 'clients', '--stdin'], { input: 'value' });
const server = [solekey, 'mcp', '--profile', 'clients'];

const checks = {
  'Claude Code': () => {
    sh('claude', ['mcp', 'add', '--scope', 'user', 'solekey', '--', ...server]);
    return /solekey: .*Connected/.test(sh('claude', ['mcp', 'list']));
  },
  'Gemini CLI': () => {
    mkdirSync(path.join(home, '.gemini'));
    writeFileSync(path.join(home, '.gemini/settings.json'), '{"security":{"folderTrust":{"enabled":false}}}');
    const cwd = path.join(home, 'project'); // in HOME itself it lists no server
    mkdirSync(cwd);
    sh('gemini', ['mcp', 'add', 'solekey', solekey, '--', ...server.slice(1)], { cwd });
    const said = sh('sh', ['-c', 'gemini mcp list 2>&1'], { cwd });
    return /solekey: .*Connected/.test(said);
  },
  Codex: () => {
    sh('codex', ['mcp', 'add', 'solekey', '--', ...server]);
    return codexTools().then((tools) => ['get_secret', 'get_totp_code', 'list_labels'].every((t) => tools.includes(t)));
  },
};

// codexTools asks Codex's own app server which tools it found.
function codexTools() {
  return new Promise((resolve, reject) => {
    const codex = spawn('codex', ['app-server'], { env, cwd: home, stdio: ['pipe', 'pipe', 'ignore'] });
    const limit = setTimeout(() => { codex.kill(); reject(new Error('no answer in 60 s')); }, 60_000);
    const send = (message) => codex.stdin.write(JSON.stringify(message) + '\n');
    createInterface({ input: codex.stdout }).on('line', (line) => {
      const message = JSON.parse(line);
      if (message.id === 1) {
        send({ method: 'initialized' });
        send({ id: 2, method: 'mcpServerStatus/list', params: {} });
      }
      if (message.id === 2) {
        clearTimeout(limit);
        codex.kill();
        const found = message.result.data.find((s) => s.name === 'solekey');
        resolve(Object.keys(found?.tools ?? {}));
      }
    });
    send({ id: 1, method: 'initialize', params: { clientInfo: { name: 'check', version: '1' } } });
  });
}

let failed = 0;
for (const [name, check] of Object.entries(checks)) {
  let ok = false;
  try {
    ok = await check();
  } catch (e) {
    console.log(String(e.stderr || e.message).slice(0, 500));
  }
  failed += ok ? 0 : 1;
  console.log(`${ok ? 'ok  ' : 'FAIL'}  ${name}  stdio`);
}
rmSync(home, { recursive: true, force: true });
process.exit(failed === 0 ? 0 : 1);

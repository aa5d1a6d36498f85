// One client library on one transport: list the tools, read the value, be
// refused with a hint, be turned away with another key.
//
//   LADDER='{...}' node sdk.mjs CLIENT TRANSPORT [MODE]
//
// TRANSPORT is http, sse or the name of a command in LADDER. Prints the
// revision it spoke; exits 1 with a line that says what was wrong.
import { readFileSync } from 'node:fs';
import { LATEST_PROTOCOL_VERSION } from '@modelcontextprotocol/sdk/types.js'; // what v1 asks for, and LangChain with it

const [client, transport, mode] = process.argv.slice(2);
const ladder = JSON.parse(process.env.LADDER);
const url = ladder.urls[transport]; // none: a command on stdio

// Each returns { tools, call, revision, close } for one connection.
const connect = {
  async v1(key) {
    const { Client } = await import('@modelcontextprotocol/sdk/client/index.js');
    const c = new Client({ name: 'ladder', version: '1' });
    await c.connect(await sdkTransport(key));
    return sdk(c, LATEST_PROTOCOL_VERSION);
  },
  async v2(key) {
    const { Client } = await import('@modelcontextprotocol/client');
    const c = new Client({ name: 'ladder', version: '1' }, { versionNegotiation: { mode: mode === 'pinned' ? { pin: '2026-07-28' } : mode } });
    await c.connect(await sdkTransport(key));
    const revision = c.getNegotiatedProtocolVersion();
    if ((revision === '2026-07-28') === (mode === 'legacy')) throw new Error(`mode ${mode} spoke ${revision}`);
    return sdk(c, revision);
  },
  async ai(key) {
    const { createMCPClient } = await import('@ai-sdk/mcp');
    const { StdioMCPTransport } = await import('@ai-sdk/mcp/mcp-stdio');
    const c = await createMCPClient({
      transport: url ? { type: transport, url, headers: bearer(key) } : new StdioMCPTransport({ ...command(key), stderr: 'ignore' }),
    });
    const tools = await c.tools();
    return {
      tools: Object.keys(tools),
      call: async (name, args) => said(await tools[name].execute(args, { toolCallId: '1', messages: [] })),
      revision: c.initializeResult.protocolVersion,
      close: () => c.close(),
    };
  },
  async langchain(key) {
    const { MultiServerMCPClient } = await import('@langchain/mcp-adapters');
    const server = url ? { transport, url, headers: bearer(key), automaticSSEFallback: false } : { transport: 'stdio', ...command(key) };
    const c = new MultiServerMCPClient({ mcpServers: { solekey: server } });
    const tools = await c.getTools();
    return {
      tools: tools.map((t) => t.name),
      call: async (name, args) => (await tools.find((t) => t.name === name).invoke(args)).text,
      revision: LATEST_PROTOCOL_VERSION,
      close: () => c.close(),
    };
  },
};

const bearer = (key) => ({ Authorization: 'Bearer ' + readFileSync(key, 'utf8').trim() });
const command = (key) => {
  const [name, ...args] = ladder.commands[transport][key === ladder.key ? 0 : 1];
  return { command: name, args };
};

const modules = {
  v1: { stdio: '@modelcontextprotocol/sdk/client/stdio.js', sse: '@modelcontextprotocol/sdk/client/sse.js', http: '@modelcontextprotocol/sdk/client/streamableHttp.js' },
  v2: { stdio: '@modelcontextprotocol/client/stdio', sse: '@modelcontextprotocol/client', http: '@modelcontextprotocol/client' },
};

async function sdkTransport(key) {
  const m = await import(modules[client][url ? transport : 'stdio']);
  if (!url) return new m.StdioClientTransport({ ...command(key), stderr: 'ignore' });
  const Transport = transport === 'sse' ? m.SSEClientTransport : m.StreamableHTTPClientTransport;
  return new Transport(new URL(url), { requestInit: { headers: bearer(key) } });
}

async function sdk(c, revision) {
  const { tools } = await c.listTools();
  return {
    tools: tools.map((t) => t.name),
    call: async (name, args) => said(await c.callTool({ name, arguments: args })),
    revision,
    close: () => c.close(),
  };
}

// said returns the text of a result, as a model would see it.
const said = (result) => result.content.map((c) => c.text).join('\n');

// answer is the text of a call, whether the library returns or throws it.
const answer = (c, name, args) => Promise.resolve(c.call(name, args)).catch((e) => String(e.message ?? e));

function expect(what, text, ...parts) {
  for (const part of parts) if (!text.includes(part)) throw new Error(`${what}: no ${part} in: ${text.slice(0, 300)}`);
}

// mute are the libraries that do not show the body of a 401, with what they
// show.
const mute = {
  'v1 sse': '401', 'v2 sse legacy': '401', 'v2 sse auto': '401', 'v2 sse pinned': '401', 'v2 http auto': '401', 'v2 http pinned': '401', 'langchain sse': '401',
  'v1 mcp-remote': 'Connection closed', // and the words on stderr
};

async function check() {
  const c = await connect[client](ladder.key);
  expect('tools', c.tools.join(), 'get_secret', 'get_totp_code', 'list_labels');
  expect('value', await answer(c, 'get_secret', { label: ladder.label }), `"value":"${ladder.value}"`);
  expect('refusal', await answer(c, 'get_secret', { label: 'demo1' }), 'not_found', 'No label demo1 for this key.', 'Did you mean demo?');
  await c.close();

  const words = await connect[client](ladder.otherKey).then(async (c) => {
    const text = await answer(c, 'get_secret', { label: ladder.label });
    await c.close();
    return text;
  }, (e) => [e, e.cause].map((e) => String(e?.message ?? '')).join(' '));
  const shown = mute[process.argv.slice(2).join(' ')];
  expect('another key', words, ...(shown ? [shown] : ['unauthorized', 'No valid agent key.']));
  return { revision: c.revision, refusal: `shows ${shown ?? 'our words'}` };
}

const done = (said, code) => process.stdout.write(said + '\n', () => process.exit(code));
check().then((r) => done(JSON.stringify(r), 0), (e) => done(e.message, 1));

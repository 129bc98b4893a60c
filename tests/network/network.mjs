// Runs the reference PDS and PLC directory in one process, for as long as stdin stays open.
//
//   node network.mjs [--pds-port N] [--plc-port N] [--data DIR] [--set NAME=JSON]... [--verbose]
//
// When both answer, one line of JSON goes to stdout:
//   {"pds": "http://localhost:…", "plc": "http://localhost:…", "pdsDid": "did:web:…", "adminPassword": "…"}
// Then stdin takes the commands `stop` and `start` (the PDS only, its data stays), each answered by one
// line of JSON. End of stdin, SIGTERM or SIGINT end the program and remove what it wrote, unless --data.
//
// --set gives one of the PDS's own settings, by its name in @atproto/pds/dist/config/env.d.ts:
//   --set blobUploadLimit=1000000 --set rateLimitsEnabled=true --set repoBackfillLimitMs=0
// --data keeps accounts, identities, keys and ports in DIR, so that a later run continues them.

import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import fs from 'node:fs'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'
import readline from 'node:readline'
import { parseArgs } from 'node:util'

const { values: options } = parseArgs({
  options: {
    'pds-port': { type: 'string' },
    'plc-port': { type: 'string' },
    data: { type: 'string' },
    set: { type: 'string', multiple: true, default: [] },
    verbose: { type: 'boolean', default: false },
  },
})

// stdout belongs to the protocol above. The servers read the LOG_ variables while they are imported.
console.log = console.error
process.env.LOG_ENABLED = String(options.verbose)
process.env.LOG_DESTINATION = '/dev/stderr'

let stopped = false
const quit = new Promise((resolve) => {
  for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, resolve)
  process.stdin.on('end', resolve)
  process.stdin.on('error', resolve)
}).then(() => (stopped = true))
const commands = readline.createInterface({ input: process.stdin })

const { PDS, envToCfg, envToSecrets } = await import('@atproto/pds')
const { MockDatabase, PlcServer } = await import('@did-plc/server')

const directory = options.data ?? fs.mkdtempSync(path.join(os.tmpdir(), 'atdata-network-'))
fs.mkdirSync(directory, { recursive: true })
const state = await loadState()

const plc = PlcServer.create({ db: await identities(), port: state.plcPort })
let pds = null
try {
  await plc.start()
  await startPds()
  report({
    pds: pds.ctx.cfg.service.publicUrl,
    plc: `http://localhost:${state.plcPort}`,
    pdsDid: pds.ctx.cfg.service.did,
    adminPassword: state.adminPassword,
  })
  const answers = { stop: stopPds, start: startPds }
  let turn = Promise.resolve()
  commands.on('line', (line) => {
    turn = turn.then(async () => {
      if (stopped) return
      try {
        if (!(line in answers)) throw new Error(`unknown command ${JSON.stringify(line)}: use stop or start`)
        await answers[line]()
        report({ done: line })
      } catch (error) {
        report({ error: error.message })
      }
    })
  })
  await quit
  await turn
} finally {
  await stopPds()
  await plc.destroy()
  if (!options.data) fs.rmSync(directory, { recursive: true, force: true })
}
process.exit()

function report(message) {
  process.stdout.write(JSON.stringify(message) + '\n')
}

async function startPds() {
  if (pds) return
  const settings = {
    devMode: true, // plain http and loopback addresses are allowed
    port: state.pdsPort,
    didPlcUrl: `http://localhost:${state.plcPort}`,
    dataDirectory: path.join(directory, 'pds'),
    blobstoreDiskLocation: path.join(directory, 'blobs'),
    blobstoreDiskTmpLocation: path.join(directory, 'blobs-incoming'),
    blobUploadLimit: 100 * 1024 * 1024, // what a large public host allows; the PDS's default is 5 MiB
    inviteRequired: false,
    jwtSecret: state.jwtSecret,
    adminPassword: state.adminPassword,
    plcRotationKeyK256PrivateKeyHex: state.rotationKey,
    ...Object.fromEntries(options.set.map(setting)),
  }
  fs.mkdirSync(settings.dataDirectory, { recursive: true })
  const server = await PDS.create(envToCfg(settings), envToSecrets(settings))
  await server.start()
  pds = server
}

async function stopPds() {
  const server = pds
  pds = null
  await server?.destroy()
}

function setting(argument) {
  const at = argument.indexOf('=')
  if (at < 1) throw new Error(`--set ${argument}: expected NAME=JSON, such as blobUploadLimit=1000000`)
  return [argument.slice(0, at), JSON.parse(argument.slice(at + 1))]
}

// Ports are part of the state: DID documents name the PDS by its URL.
async function loadState() {
  const file = path.join(directory, 'network.json')
  if (fs.existsSync(file)) return JSON.parse(fs.readFileSync(file, 'utf8'))
  const state = {
    pdsPort: Number(options['pds-port'] ?? (await freePort())),
    plcPort: Number(options['plc-port'] ?? (await freePort())),
    adminPassword: randomBytes(16).toString('hex'),
    jwtSecret: randomBytes(16).toString('hex'),
    rotationKey: randomBytes(32).toString('hex'),
  }
  fs.writeFileSync(file, JSON.stringify(state))
  return state
}

// The PLC directory's in-memory database, with its operations kept in a file and replayed from it.
async function identities() {
  const db = new MockDatabase()
  const file = path.join(directory, 'plc-operations.jsonl')
  if (fs.existsSync(file)) {
    for (const line of fs.readFileSync(file, 'utf8').split('\n').filter(Boolean)) {
      const { did, operation } = JSON.parse(line)
      await db.validateAndAddOp(did, operation)
    }
  }
  const add = db.validateAndAddOp.bind(db)
  db.validateAndAddOp = async (did, operation) => {
    await add(did, operation)
    fs.appendFileSync(file, JSON.stringify({ did, operation }) + '\n')
  }
  return db
}

// Not a port the kernel hands out to outgoing connections: one of those could take it while the PDS is stopped.
async function freePort() {
  for (;;) {
    const port = 20_000 + Math.floor(Math.random() * 12_000)
    const probe = net.createServer()
    try {
      await once(probe.listen(port), 'listening')
      return port
    } catch (error) {
      if (error.code !== 'EADDRINUSE') throw error
    } finally {
      probe.close()
    }
  }
}

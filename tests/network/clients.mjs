// Asks an AppView as `@atproto/api`'s client does, with lexicon documents loaded into it, against which it checks every
// answer.
//
// stdin: one JSON object
//   lexicons  documents
//   service   the URL to ask
//   login     {identifier, password}, to log in there first; optional
//   proxy     "did:…#service", to have the server pass the calls on; optional
//   calls     [{nsid, params}]
// stdout: a JSON array, for each call {data} or {error, status, message}

import { AtpAgent } from '@atproto/api'
import { XRPCError, XRPCInvalidResponseError } from '@atproto/xrpc'
import { text } from 'node:stream/consumers'

const { lexicons, service, login, proxy, calls } = JSON.parse(await text(process.stdin))

let agent = new AtpAgent({ service })
if (login) await agent.login(login)
if (proxy) {
  const [did, name] = proxy.split('#')
  agent = agent.withProxy(name, did)
}
for (const document of lexicons) agent.lex.add(document)

const answers = []
for (const { nsid, params } of calls) answers.push(await ask(nsid, params))
process.stdout.write(JSON.stringify(answers))

async function ask(nsid, params) {
  try {
    agent.lex.assertValidXrpcParams(nsid, params)
    const { data } = await agent.call(nsid, params)
    return { data }
  } catch (error) {
    if (error instanceof XRPCInvalidResponseError) {
      return { error: 'InvalidResponse', message: error.validationError.message }
    }
    if (error instanceof XRPCError) return { error: error.error, status: error.status, message: error.message }
    return { error: error.constructor.name, message: error.message }
  }
}

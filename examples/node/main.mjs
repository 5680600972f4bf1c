#!/usr/bin/env node
// ask: starts a run and follows it; the answer is on standard output, what happens on standard error.
// exec: runs Python in a sandbox, its output as it comes.

import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { connect, explain } from "./rlm.mjs";

const USAGE = `usage: node main.mjs ask QUERY [--context FILE] [--json]
       node main.mjs exec FILE
Both take --server unix:/path or host:port (or RLM_SERVER), --token (or RLM_TOKEN) and --ca PEM.
--json writes each record as a line of JSON instead.`;
const FAILED = 1;
const MISUSED = 2;

function parse() {
  const text = { type: "string" };
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { server: text, token: text, ca: text, context: text, json: { type: "boolean" } },
  });
  const [command, subject, ...rest] = positionals;
  if (!["ask", "exec"].includes(command) || !subject || rest.length) throw new TypeError("what shall be done?");
  const server = values.server ?? process.env.RLM_SERVER;
  if (!server) throw new TypeError("--server is missing");
  return { ...values, server, token: values.token ?? process.env.RLM_TOKEN, command, subject };
}

async function ask(client, { subject, context, json }) {
  const request = { query: subject };
  if (context) request.text = readFileSync(context, "utf8");
  const { runId } = await client.startRun(request);
  for await (const record of client.watchRun(runId)) {
    const kind = record.event?.event;
    if (json) process.stdout.write(`${JSON.stringify(record)}\n`);
    // Without a kind: an event newer than these protos, to be ignored.
    else if (kind && !kind.endsWith("Streamed")) process.stderr.write(`${"  ".repeat(record.depth)}${kind}\n`);
  }
  const run = await client.getRun(runId);
  if (run.state !== "RUN_STATE_SUCCEEDED") {
    process.stderr.write(`${run.state}: ${run.error?.reason}: ${run.error?.message}\n`);
    return FAILED;
  }
  process.stdout.write(json ? `${JSON.stringify(run)}\n` : `${run.answer}\n`);
  return 0;
}

async function exec(client, { subject }) {
  const code = readFileSync(subject, "utf8");
  const stopping = new AbortController();
  process.once("SIGINT", () => stopping.abort());
  const { sandboxId } = await client.createSandbox();
  try {
    const onOutput = ({ stream, text }) =>
      (stream === "OUTPUT_STREAM_STDERR" ? process.stderr : process.stdout).write(text);
    const result = await client.runCell(sandboxId, code, { onOutput, signal: stopping.signal });
    if (result.error) process.stderr.write(result.error.traceback);
    return result.status === "CELL_STATUS_OK" ? 0 : FAILED;
  } finally {
    await client.deleteSandbox(sandboxId);
  }
}

async function main() {
  let options;
  try {
    options = parse();
  } catch (error) {
    process.stderr.write(`error: ${error.message}\n${USAGE}\n`);
    return MISUSED;
  }
  let client;
  try {
    client = connect(options.server, options);
    return await (options.command === "ask" ? ask : exec)(client, options);
  } catch (error) {
    process.stderr.write(`error: ${explain(error)}\n`);
    return FAILED;
  } finally {
    client?.close();
  }
}

process.exitCode = await main();

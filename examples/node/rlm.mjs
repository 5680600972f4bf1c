// A client of an rlm service: nothing but the protos and two public packages.
//
//   const client = connect("unix:/var/tmp/rlm-1000/rlm.sock");
//   const run = await client.startRun({ query: "Which line is odd?", text: "a\nb\n1" });
//   for await (const record of client.watchRun(run.runId)) console.log(record.seq, record.event.event);
//   console.log((await client.getRun(run.runId)).answer);

import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const { status } = grpc;
const PROTOS = process.env.RLM_PROTOS || fileURLToPath(new URL("../../protos", import.meta.url));
// What the service may send: a record with a whole conversation in it. It takes 36 MiB itself.
const MAX_MESSAGE_BYTES = 64 * 1024 * 1024;
const DEADLINE_MS = 60_000;
const RETRY_MS = 20_000;
const LONGEST_WAIT_MS = 2_000;
// CANCELLED too: a server that goes down cancels what it has in hand.
const PASSING = new Set([status.UNAVAILABLE, status.CANCELLED]);

// address: unix:/path, or host:port. Beyond this machine's loopback, and wherever `ca` (a PEM file) is given, with TLS.
export function connect(address, { token, ca } = {}) {
  const definition = loadSync(["rlm/v1/run.proto", "rlm/v1/sandbox.proto"], {
    includeDirs: [PROTOS],
    // uint64 is more than a number of JavaScript holds exactly; enums are their names.
    longs: String,
    enums: String,
    oneofs: true,
  });
  const { rlm } = grpc.loadPackageDefinition(definition);
  const credentials = isLocal(address) && !ca
    ? grpc.credentials.createInsecure()
    : grpc.credentials.createSsl(ca ? readFileSync(ca) : null);
  const options = {
    "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
    "grpc.keepalive_time_ms": 60_000,
  };
  return new Client(
    new rlm.v1.RunService(address, credentials, options),
    new rlm.v1.SandboxService(address, credentials, options),
    token,
  );
}

function isLocal(address) {
  return address.startsWith("unix:") || /^(localhost|127\.[0-9.]+|\[::1\]):\d+$/.test(address);
}

export class Client {
  constructor(runs, sandboxes, token) {
    this.runs = runs;
    this.sandboxes = sandboxes;
    this.metadata = new grpc.Metadata();
    if (token) this.metadata.set("authorization", `Bearer ${token}`);
  }

  close() {
    this.runs.close();
    this.sandboxes.close();
  }

  // Starts a run. It may be sent again safely: the request id makes it the same run.
  async startRun(request) {
    const complete = { requestId: randomUUID(), ...request };
    return (await this.#retried(() => this.#ask(this.runs, "startRun", complete))).run;
  }

  async getRun(runId) {
    return (await this.#retried(() => this.#ask(this.runs, "getRun", { runId }))).run;
  }

  // The records of a run after `afterSeq`, to its end: over lost connections and a restart of the server too.
  async *watchRun(runId, afterSeq = "0") {
    let seen = afterSeq;
    let waits = new Waits();
    for (;;) {
      const call = this.runs.watchRun({ runId, afterSeq: seen }, this.metadata);
      try {
        let missed = false;
        for await (const { item, record } of call) {
          // What we were too slow for is kept by the server: ask for it again, from where we are.
          if (item === "missed") {
            missed = true;
            break;
          }
          seen = record.seq;
          waits = new Waits();
          yield record;
        }
        if (!missed) return;
      } catch (error) {
        if (!PASSING.has(error.code) || !(await waits.next())) throw error;
      } finally {
        stop(call);
      }
    }
  }

  async createSandbox(request = {}) {
    const complete = { requestId: randomUUID(), ...request };
    return (await this.#retried(() => this.#ask(this.sandboxes, "createSandbox", complete))).sandbox;
  }

  // Runs Python in the sandbox; calls onOutput({stream, offset, text}) as output comes, and returns the result.
  // Never sent again: the code may have run. Ending it early (signal) interrupts the code.
  async runCell(sandboxId, code, { onOutput = () => {}, signal } = {}) {
    const call = this.sandboxes.runCell({ sandboxId, code }, this.metadata);
    const interrupt = () => call.cancel();
    signal?.addEventListener("abort", interrupt);
    try {
      let last;
      for await (const { item, printed, result } of call) {
        if (item === "printed") onOutput(printed);
        if (item === "result") last = result;
      }
      if (!last) throw new Error("the service ended the cell without a result");
      return last;
    } finally {
      signal?.removeEventListener("abort", interrupt);
      stop(call);
    }
  }

  async deleteSandbox(sandboxId) {
    await this.#ask(this.sandboxes, "deleteSandbox", { sandboxId });
  }

  #ask(service, method, request) {
    return new Promise((resolve, reject) => {
      const answered = (error, response) => (error ? reject(error) : resolve(response));
      service[method](request, this.metadata, { deadline: Date.now() + DEADLINE_MS }, answered);
    });
  }

  async #retried(once) {
    const waits = new Waits();
    for (;;) {
      try {
        return await once();
      } catch (error) {
        if (error.code !== status.UNAVAILABLE || !(await waits.next())) throw error;
      }
    }
  }
}

// Ever longer waits with jitter; false once they have lasted too long.
class Waits {
  #last = Date.now() + RETRY_MS;
  #wait = 50;

  async next() {
    if (Date.now() >= this.#last) return false;
    await delay(this.#wait * (0.5 + Math.random() / 2));
    this.#wait = Math.min(this.#wait * 2, LONGEST_WAIT_MS);
    return true;
  }
}

function stop(call) {
  // A stream that is cancelled says so as an error, which nobody waits for any more.
  call.on("error", () => {});
  call.cancel();
}

// What a program decides by (google.rpc.ErrorInfo has it in full, in error.metadata's grpc-status-details-bin).
export function explain(error) {
  return error.code === undefined ? error.message : `${status[error.code]}: ${error.details}`;
}

// What every client script needs: where SAGE is, and a way to say which promises it kept.

import { execFile } from "node:child_process";
import { promisify } from "node:util";

const run = promisify(execFile);

export const URL = `${process.env.CONFORMANCE_URL}/v1`;
export const KEY = process.env.CONFORMANCE_KEY;
export const LIMITED_KEY = process.env.CONFORMANCE_LIMITED_KEY; // may ask once a minute
export const MODEL = process.env.CONFORMANCE_MODEL;
export const EMBEDDING_MODEL = process.env.CONFORMANCE_EMBEDDING_MODEL;
export const VECTOR_LENGTH = 384;

const promises = [];

/** Makes a function one of the checks; its name is the promise. */
export function promise(check) {
  promises.push(check);
}

/** Returns the error that `call` throws; fails if it throws none. */
export async function thrown(call) {
  try {
    await call();
  } catch (error) {
    return error;
  }
  throw new Error("nothing was thrown");
}

/** Waits until the language model's worker holds so many requests; fails after 10 s. */
export async function untilInFlight(expected) {
  const [command, ...args] = JSON.parse(process.env.CONFORMANCE_STATUS);
  const deadline = Date.now() + 10_000;
  for (;;) {
    const { stdout } = await run(command, args);
    const worker = JSON.parse(stdout).actors.find((actor) => actor.kind === "llm-worker");
    if (worker.num_in_flight === expected) return;
    if (Date.now() > deadline) throw new Error(`${worker.num_in_flight} requests in flight, not ${expected}`);
  }
}

/** Runs the promises that the command line names, or all; prints one line of JSON for each. */
export async function main() {
  const asked = process.argv.slice(2);
  for (const check of promises) {
    if (asked.length > 0 && !asked.includes(check.name)) continue;
    const began = Date.now();
    let detail = "";
    try {
      await check();
    } catch (error) {
      detail = String(error?.stack ?? error);
    }
    const seconds = (Date.now() - began) / 1000;
    console.log(JSON.stringify({ name: check.name, is_kept: detail === "", detail, seconds }));
  }
}

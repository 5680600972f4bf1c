// What dspy's runner takes of a module whose host a machine without internet does not reach: the lines of a stream.
export async function* readLines(reader) {
  const decoder = new TextDecoder(); const buffer = new Uint8Array(65536); let held = "";
  for (;;) {
    const count = await reader.read(buffer);
    if (count === null) break;
    held += decoder.decode(buffer.subarray(0, count), { stream: true });
    const lines = held.split("\n"); held = lines.pop();
    yield* lines;
  }
  if (held) yield held;
}

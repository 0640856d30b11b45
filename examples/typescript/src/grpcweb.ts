/** What one stream runs over when it speaks gRPC-Web; the same code in Node and browsers. */
import { createGrpcWebTransport } from "@connectrpc/connect-web";

import type { Connection } from "./keeper.js";

/** Connects to the mesh at `baseUrl`; the connection belongs to the stream that is opened over it. */
export function connectGrpcWeb(baseUrl: string): Connection {
  const closing = new AbortController();
  return {
    transport: createGrpcWebTransport({
      baseUrl,
      fetch: (input, init) => fetchUntil(closing.signal, input, init),
    }),
    close: () => closing.abort(),
  };
}

/**
 * Fetches as usual, and ends the answer's body at the signal. A signal given to Node's `fetch` is
 * followed by weak references, so after a garbage collection it ends nothing; and Connect gives up a
 * body that nobody reads on without ending it.
 */
async function fetchUntil(
  signal: AbortSignal,
  input: RequestInfo | URL,
  init?: RequestInit,
): Promise<Response> {
  const answer = await fetch(input, init);
  const body = answer.body?.pipeThrough(new TransformStream(), { signal });
  return new Response(body, answer);
}

/** Keeps one book over a connection that may break at any time; the same code in Node and browsers. */
import { Code, ConnectError, type Transport, createClient } from "@connectrpc/connect";

import { MarketDataService } from "./gen/marketprism/market/v1/market_data_service_pb.js";
import { type MarketEvent, StreamState } from "./gen/marketprism/market/v1/market_event_pb.js";
import {
  OrderBookReason,
  OrderBookState,
  SnapshotReason,
} from "./gen/marketprism/market/v1/order_book_pb.js";
import { OrderBook, OutOfStepError } from "./orderbook.js";

/** How many heartbeats may fail to come until the stream counts as dead. */
const HEARTBEATS_MISSED = 3;
const SHORTEST_DELAY_MS = 100;
const LONGEST_DELAY_MS = 10_000;

/** What a stream runs over. `close` ends it whatever state it is in. */
export interface Connection {
  readonly transport: Transport;
  close(): void;
}

export interface KeeperOptions {
  readonly exchange: string;
  readonly symbol: string;
  /** Ask for a heartbeat after so long without an event, 100 to 60000. */
  readonly heartbeatMs: number;
  /**
   * Makes the connection of one stream. Each stream has its own: one that is cut without a word
   * looks alive for minutes, and the next stream must not be put on it.
   */
  connect(): Connection;
  /** Called after every event that the book took, and without one when the stream broke. */
  onEvent(book: OrderBook, event?: MarketEvent): void;
  /** Gets what a person should know. */
  notice(text: string): void;
}

class SilentError extends Error {
  override name = "SilentError";
}

class EndOfStreamError extends Error {
  override name = "EndOfStreamError";
}

export class Keeper {
  readonly book: OrderBook;
  reconnects = 0;
  readonly #options: KeeperOptions;

  constructor(options: KeeperOptions) {
    this.#options = options;
    this.book = new OrderBook(options.exchange, options.symbol);
  }

  /** Runs until the signal; throws when the server says that asking again cannot help. */
  async keep(signal: AbortSignal): Promise<void> {
    let delay = SHORTEST_DELAY_MS;
    const heard = () => {
      delay = SHORTEST_DELAY_MS;
    };
    while (!signal.aborted) {
      try {
        await this.#follow(signal, heard);
      } catch (error) {
        if (signal.aborted) {
          return;
        }
        this.book.disconnected();
        this.#options.onEvent(this.book);
        if (isPermanent(error)) {
          throw error;
        }
        // A random part, so that a thousand clients of one server do not come back at once.
        const pause = Math.round(delay * (0.5 + Math.random() / 2));
        this.#options.notice(`lost ${explain(error)}; connecting again in ${pause} ms`);
        delay = Math.min(2 * delay, LONGEST_DELAY_MS);
        await sleep(pause, signal);
        this.reconnects += 1;
      }
    }
  }

  /** Reads one stream to its end; always throws, unless the signal ended it. */
  async #follow(signal: AbortSignal, heard: () => void): Promise<void> {
    const { exchange, symbol, heartbeatMs, connect, onEvent } = this.#options;
    const connection = connect();
    const ending = new AbortController();
    const end = () => ending.abort();
    signal.addEventListener("abort", end);
    // Whoever hears nothing for some heartbeats is cut off, whatever TCP believes.
    const limit = HEARTBEATS_MISSED * heartbeatMs;
    const watch = () =>
      setTimeout(() => ending.abort(new SilentError(`nothing came for ${limit} ms`)), limit);
    let timer = watch();
    try {
      const { epoch, sequence } = this.book;
      const stream = createClient(MarketDataService, connection.transport).streamOrderBook(
        {
          exchange,
          symbol,
          heartbeatInterval: {
            seconds: BigInt(Math.floor(heartbeatMs / 1000)),
            nanos: (heartbeatMs % 1000) * 1_000_000,
          },
          ...(epoch === 0n ? {} : { resume: { epoch, sequence } }),
        },
        { signal: ending.signal },
      );
      for await (const { events } of until(ending.signal, stream)) {
        clearTimeout(timer);
        timer = watch();
        heard();
        for (const event of events) {
          this.#tell(event);
          this.book.apply(event);
          onEvent(this.book, event);
        }
      }
      throw new EndOfStreamError("the server ended the stream");
    } finally {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      ending.abort();
      connection.close();
    }
  }

  /** Says what a person should know of an event. */
  #tell({ event }: MarketEvent): void {
    const { notice } = this.#options;
    if (event.case === "orderBookSnapshot") {
      const { epoch, sequence, reason } = event.value;
      notice(`snapshot ${epoch}/${sequence} ${SnapshotReason[reason]}`);
    } else if (event.case === "orderBookStatus") {
      const { state, reason, detail } = event.value;
      notice(`book ${OrderBookState[state]} ${OrderBookReason[reason]} ${detail}`);
    } else if (event.case === "streamStatus") {
      const { state, reason, message, droppedEvents } = event.value;
      if (state === StreamState.LAGGING) {
        notice(`stream LAGGING: ${droppedEvents} events were left out`);
      } else if (state !== StreamState.HEARTBEAT) {
        notice(`stream ${StreamState[state]} ${reason} ${message}`);
      }
    }
  }
}

/** Whether the same request will be refused again. */
function isPermanent(error: unknown): boolean {
  return (
    error instanceof ConnectError &&
    [
      Code.NotFound,
      Code.InvalidArgument,
      Code.Unauthenticated,
      Code.PermissionDenied,
      Code.Unimplemented,
    ].includes(error.code)
  );
}

export function explain(error: unknown): string {
  if (error instanceof OutOfStepError) {
    return `OUT_OF_STEP: ${error.message}`;
  }
  if (error instanceof SilentError) {
    return `SILENT: ${error.message}`;
  }
  if (error instanceof EndOfStreamError) {
    return `END: ${error.message}`;
  }
  const { code, rawMessage } = ConnectError.from(error);
  return `${Code[code]}: ${rawMessage}`;
}

/**
 * Gives what the stream brings; throws the signal's reason as soon as it fires, even if the stream
 * does not take notice of it.
 */
async function* until<T>(signal: AbortSignal, stream: AsyncIterable<T>): AsyncGenerator<T> {
  const iterator = stream[Symbol.asyncIterator]();
  for (;;) {
    const { done, value } = await orAbort(signal, iterator.next());
    if (done === true) {
      return;
    }
    yield value;
  }
}

/** Not a race of promises: one that outlives many races keeps something of every one. */
function orAbort<T>(signal: AbortSignal, promise: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    if (signal.aborted) {
      abort();
    }
    signal.addEventListener("abort", abort);
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}

function sleep(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, milliseconds);
    signal.addEventListener("abort", done);
    if (signal.aborted) {
      done();
    }
  });
}

/**
 * Keeps the book of one instrument from a stream of market events.
 *
 * No I/O: it takes the events of StreamOrderBook, StreamMarketData or Subscribe one after the other
 * and says what may be believed. Two rules keep a book right: a snapshot replaces everything; an
 * update is right only if it has the same epoch and the next sequence.
 */
import { compareDecimals } from "./decimal.js";
import type { PriceLevel } from "./gen/marketprism/market/v1/common_pb.js";
import {
  type MarketEvent,
  StreamState,
  type StreamStatus,
} from "./gen/marketprism/market/v1/market_event_pb.js";
import {
  type OrderBookSnapshot,
  OrderBookState,
  type OrderBookUpdate,
} from "./gen/marketprism/market/v1/order_book_pb.js";

/** A price and the quantity resting there, both canonical decimal strings. */
export interface Level {
  readonly price: string;
  readonly quantity: string;
}

/**
 * An update does not continue the book. The book is empty then: what was held must not be used, and
 * only a snapshot gives a book again.
 */
export class OutOfStepError extends Error {
  override name = "OutOfStepError";
}

/** The order book of one instrument; events of all others are ignored. */
export class OrderBook {
  /** Epoch of the book, 0 while there is none. */
  epoch = 0n;
  /** Number of the last update contained. */
  sequence = 0n;
  /** What the server told last; UNSPECIFIED while it has told nothing in this stream. */
  state = OrderBookState.UNSPECIFIED;

  #bids = new Side(true);
  #asks = new Side(false);
  #streamOpen = false;
  #interrupted = new Set<string>();

  constructor(
    readonly exchange: string,
    readonly symbol: string,
  ) {}

  /**
   * Whether the book equals the venue's: there is one, the server says that it is in step, and the
   * stream that would tell otherwise is open.
   */
  get trusted(): boolean {
    const isHeard = this.#streamOpen && this.#interrupted.size === 0;
    return this.epoch !== 0n && isHeard && this.state === OrderBookState.SYNCED;
  }

  /**
   * The best bids, highest first, at most `depth` of them. Beyond the horizon that the venue
   * publishes a book is unknown, so nothing of that is given.
   */
  bids(depth = Infinity): Level[] {
    return this.#bids.best(depth);
  }

  /** The best asks, lowest first. */
  asks(depth = Infinity): Level[] {
    return this.#asks.best(depth);
  }

  /** Where the book stands, quantity and price of the best bid, price and quantity of the best ask. */
  top(): string {
    const [bid] = this.bids(1);
    const [ask] = this.asks(1);
    return (
      `${this.exchange} ${this.symbol} ${this.epoch}/${this.sequence}  ` +
      `${bid?.quantity ?? "-"} @ ${bid?.price ?? "-"} | ${ask?.price ?? "-"} @ ${ask?.quantity ?? "-"}`
    );
  }

  /**
   * The stream is over. The levels stay, because a new stream may go on where they stand; nothing is
   * known of the venue until it does.
   */
  disconnected(): void {
    this.#streamOpen = false;
    this.#interrupted.clear();
    this.state = OrderBookState.UNSPECIFIED;
  }

  /**
   * Takes the next event. Throws an OutOfStepError when an update does not continue the book; a new
   * stream is needed then, without a resume point.
   */
  apply({ event }: MarketEvent): void {
    switch (event.case) {
      case "orderBookSnapshot":
        if (this.#isMine(event.value)) {
          this.#replace(event.value);
        }
        break;
      case "orderBookUpdate":
        if (this.#isMine(event.value)) {
          this.#update(event.value);
        }
        break;
      case "orderBookStatus":
        if (this.#isMine(event.value)) {
          this.state = event.value.state;
        }
        break;
      case "streamStatus":
        if (this.#isOfMe(event.value)) {
          this.#follow(event.value);
        }
        break;
    }
  }

  #isMine(event: { exchange: string; symbol: string }): boolean {
    return event.exchange === this.exchange && event.symbol === this.symbol;
  }

  /** Whether a status speaks of the book: of the whole stream, of its venue or of its instrument. */
  #isOfMe({ exchange, symbol }: StreamStatus): boolean {
    return ["", this.exchange].includes(exchange) && ["", this.symbol].includes(symbol);
  }

  #follow({ state, exchange, symbol }: StreamStatus): void {
    // What is interrupted stays so until the same scope is open again.
    const scope = `${exchange}/${symbol}`;
    if (state === StreamState.OPEN) {
      this.#streamOpen = true;
      this.#interrupted.delete(scope);
    } else if (state === StreamState.INTERRUPTED) {
      this.#interrupted.add(scope);
    } else if (state === StreamState.ENDED) {
      this.#streamOpen = false;
    }
  }

  #replace(snapshot: OrderBookSnapshot): void {
    this.epoch = snapshot.epoch;
    this.sequence = snapshot.sequence;
    this.#bids = new Side(true, snapshot.bidHorizon);
    this.#asks = new Side(false, snapshot.askHorizon);
    this.#bids.apply(snapshot.bids);
    this.#asks.apply(snapshot.asks);
  }

  #update(update: OrderBookUpdate): void {
    const { epoch, sequence } = this;
    // A merged update stands for all from its first one on.
    const first = update.firstSequence || update.sequence;
    if (epoch === 0n || update.epoch !== epoch || first !== sequence + 1n) {
      this.epoch = 0n;
      this.sequence = 0n;
      this.#bids = new Side(true);
      this.#asks = new Side(false);
      this.disconnected();
      throw new OutOfStepError(
        `the book stands at ${epoch}/${sequence}, and update ${update.epoch}/${update.sequence} ` +
          "does not continue it",
      );
    }
    this.sequence = update.sequence;
    this.#bids.apply(update.bids);
    this.#asks.apply(update.asks);
  }
}

/** One side of a book, best level first. */
class Side {
  readonly #levels: Level[] = [];

  constructor(
    readonly descending: boolean,
    readonly horizon = "",
  ) {}

  apply(changes: readonly PriceLevel[]): void {
    for (const { price, quantity } of changes) {
      const place = this.#place((held) => this.#order(held, price) < 0);
      const found = this.#levels[place]?.price === price;
      if (quantity !== "0") {
        this.#levels.splice(place, found ? 1 : 0, { price, quantity });
      } else if (found) {
        this.#levels.splice(place, 1);
      }
    }
  }

  best(depth: number): Level[] {
    const { horizon } = this;
    const known =
      horizon === ""
        ? this.#levels.length
        : this.#place((held) => this.#order(held, horizon) <= 0);
    return this.#levels.slice(0, Math.min(depth, known));
  }

  /** Negative when price `a` is better than price `b`. */
  #order(a: string, b: string): number {
    return this.descending ? compareDecimals(b, a) : compareDecimals(a, b);
  }

  /** Index of the first level whose price is not `before`. */
  #place(before: (price: string) => boolean): number {
    let low = 0;
    let high = this.#levels.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (before(this.#levels[middle]!.price)) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
}

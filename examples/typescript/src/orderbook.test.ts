import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { fromBinary } from "@bufbuild/protobuf";

import { compareDecimals } from "./decimal.js";
import { digest } from "./digest.js";
import { MarketEventSchema } from "./gen/marketprism/market/v1/market_event_pb.js";
import { OrderBookState } from "./gen/marketprism/market/v1/order_book_pb.js";
import { type Level, OrderBook, OutOfStepError } from "./orderbook.js";

interface Step {
  event?: string;
  expect: {
    out_of_step: boolean;
    state: string;
    trusted: boolean;
    epoch: string;
    sequence: string;
    bids: [string, string][];
    asks: [string, string][];
    digest: string;
  };
}

interface Vectors {
  exchange: string;
  symbol: string;
  vectors: { name: string; rule: string; steps: Step[] }[];
}

const given = JSON.parse(
  readFileSync(new URL("../../vectors/order_book.json", import.meta.url), "utf8"),
) as Vectors;

for (const { name, rule, steps } of given.vectors) {
  test(`${name}: ${rule}`, () => {
    const book = new OrderBook(given.exchange, given.symbol);
    for (const [number, { event, expect }] of steps.entries()) {
      const held = {
        out_of_step: take(book, event),
        state: OrderBookState[book.state],
        trusted: book.trusted,
        epoch: String(book.epoch),
        sequence: String(book.sequence),
        bids: pairs(book.bids()),
        asks: pairs(book.asks()),
        digest: digest(book),
      };
      assert.deepEqual(held, expect, `step ${number}`);
    }
  });
}

/** Gives one step to the book, and tells whether it fell out of step. */
function take(book: OrderBook, event: string | undefined): boolean {
  if (event === undefined) {
    book.disconnected();
    return false;
  }
  try {
    book.apply(fromBinary(MarketEventSchema, Buffer.from(event, "base64")));
    return false;
  } catch (error) {
    assert(error instanceof OutOfStepError);
    return true;
  }
}

function pairs(levels: Level[]): [string, string][] {
  return levels.map(({ price, quantity }) => [price, quantity]);
}

test("there are vectors", () => {
  assert(given.vectors.length > 0);
});

test("decimals are ordered by value", () => {
  const rising = ["-10", "-2", "-1.5", "-1.25", "0", "0.00000001", "0.1", "0.12", "9.5", "10", "100.01"];
  for (const [i, a] of rising.entries()) {
    for (const [j, b] of rising.entries()) {
      assert.equal(Math.sign(compareDecimals(a, b)), Math.sign(i - j), `${a} and ${b}`);
    }
  }
});

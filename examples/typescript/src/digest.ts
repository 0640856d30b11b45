import { createHash } from "node:crypto";

import type { OrderBook } from "./orderbook.js";

const DEPTH = 50;

/** The fingerprint of the best 50 levels a side by which two books are compared. */
export function digest(book: OrderBook): string {
  const hash = createHash("sha256");
  for (const { price, quantity } of book.bids(DEPTH)) {
    hash.update(`bid ${price} ${quantity}\n`);
  }
  for (const { price, quantity } of book.asks(DEPTH)) {
    hash.update(`ask ${price} ${quantity}\n`);
  }
  return hash.digest("hex");
}

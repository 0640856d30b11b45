/**
 * Keeps one order book in a page, over gRPC-Web: browser/index.html?symbol=ETH-USDT. Levels are
 * shown only while they may be believed.
 */
import { connectGrpcWeb } from "./grpcweb.js";
import { Keeper, explain } from "./keeper.js";
import type { Level, OrderBook } from "./orderbook.js";

const DEPTH = 10;

const query = new URLSearchParams(location.search);
const address = query.get("address") ?? "127.0.0.1:8080";

function element(id: string): HTMLElement {
  const found = document.getElementById(id);
  if (found === null) {
    throw new Error(`the page has no element "${id}"`);
  }
  return found;
}

const place = element("place");
const state = element("state");
const asks = element("asks");
const bids = element("bids");
const notices = element("notices");

function row({ price, quantity }: Level): HTMLElement {
  const line = document.createElement("tr");
  for (const text of [price, quantity]) {
    const cell = document.createElement("td");
    cell.textContent = text;
    line.append(cell);
  }
  return line;
}

function show(book: OrderBook): void {
  const depth = book.trusted ? DEPTH : 0;
  place.textContent = `${book.exchange} ${book.symbol} ${book.epoch}/${book.sequence}`;
  state.textContent = book.trusted ? "in step" : "not to be used now";
  state.className = book.trusted ? "trusted" : "untrusted";
  asks.replaceChildren(...book.asks(depth).reverse().map(row));
  bids.replaceChildren(...book.bids(depth).map(row));
}

function notice(text: string): void {
  const line = document.createElement("li");
  line.textContent = `${new Date().toLocaleTimeString()} ${text}`;
  notices.prepend(line);
  notices.children[20]?.remove();
}

let frame = 0;
const keeper = new Keeper({
  exchange: query.get("exchange") ?? "binance",
  symbol: query.get("symbol") ?? "BTC-USDT",
  heartbeatMs: 2000,
  connect: () => connectGrpcWeb(`http://${address}`),
  notice,
  onEvent(book) {
    if (!book.trusted) {
      // At once: a page in the background gets no frames.
      show(book);
      return;
    }
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(() => show(keeper.book));
  },
});

keeper.keep(new AbortController().signal).catch((error: unknown) => notice(explain(error)));

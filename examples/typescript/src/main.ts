/**
 * Keeps one order book and shows its top whenever it may be believed.
 *
 *     node dist/main.js --exchange binance --symbol BTC-USDT --address 127.0.0.1:8080
 *
 * What happens to the book and the connection is told on stderr. `--transport grpc-web` speaks as a
 * browser does.
 */
import { parseArgs } from "node:util";

import { Http2SessionManager, createGrpcTransport } from "@connectrpc/connect-node";

import { digest } from "./digest.js";
import { connectGrpcWeb } from "./grpcweb.js";
import { type Connection, Keeper, explain } from "./keeper.js";
import type { Level } from "./orderbook.js";

const SHOWN_AT_MOST_EVERY_MS = 100;
const JSON_DEPTH = 50;

const { values: options } = parseArgs({
  options: {
    address: { type: "string", default: "127.0.0.1:8080" },
    exchange: { type: "string", default: "binance" },
    symbol: { type: "string", default: "BTC-USDT" },
    seconds: { type: "string", default: "0" },
    "heartbeat-ms": { type: "string", default: "2000" },
    transport: { type: "string", default: "grpc" },
    digests: { type: "boolean", default: false },
    json: { type: "boolean", default: false },
  },
});

const baseUrl = `http://${options.address}`;

function connectGrpc(): Connection {
  const sessionManager = new Http2SessionManager(baseUrl);
  return {
    transport: createGrpcTransport({ baseUrl, sessionManager }),
    close: () => sessionManager.abort(),
  };
}

const pairs = (levels: Level[]) => levels.map(({ price, quantity }) => [price, quantity]);

let shown = 0;
let wasTrusted = false;
const keeper = new Keeper({
  exchange: options.exchange,
  symbol: options.symbol,
  heartbeatMs: Number(options["heartbeat-ms"]),
  connect: options.transport === "grpc-web" ? () => connectGrpcWeb(baseUrl) : connectGrpc,
  notice: (text) => console.error("--", text.trim()),
  onEvent(book, event) {
    const kind = event?.event.case;
    const changed = kind === "orderBookSnapshot" || kind === "orderBookUpdate";
    if (changed && options.digests) {
      console.log("digest", String(book.epoch), String(book.sequence), digest(book));
    }
    const became = book.trusted && !wasTrusted;
    wasTrusted = book.trusted;
    const now = performance.now();
    if (became || (book.trusted && changed && now - shown >= SHOWN_AT_MOST_EVERY_MS)) {
      shown = now;
      console.log(book.top());
    }
  },
});

const stop = new AbortController();
process.once("SIGINT", () => stop.abort());
process.once("SIGTERM", () => stop.abort());
const seconds = Number(options.seconds);
const end = seconds > 0 ? setTimeout(() => stop.abort(), seconds * 1000) : undefined;
try {
  await keeper.keep(stop.signal);
} catch (error) {
  console.error(explain(error));
  process.exitCode = 1;
} finally {
  clearTimeout(end);
}
if (options.json) {
  const { book, reconnects } = keeper;
  console.log(
    JSON.stringify({
      exchange: book.exchange,
      symbol: book.symbol,
      trusted: book.trusted,
      epoch: String(book.epoch),
      sequence: String(book.sequence),
      bids: pairs(book.bids(JSON_DEPTH)),
      asks: pairs(book.asks(JSON_DEPTH)),
      reconnects,
    }),
  );
}
// Now, whatever a library still waits for; but not before the pipes have taken the last lines.
process.stderr.write("", () => process.stdout.write("", () => process.exit()));

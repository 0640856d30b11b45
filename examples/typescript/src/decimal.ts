/**
 * Orders two canonical decimal strings (no exponent, no leading or trailing zeros) by value; negative
 * when `a` is the lower one. The strings stay what they are, so no digit is ever lost to a double.
 */
export function compareDecimals(a: string, b: string): number {
  const negativeA = a.startsWith("-");
  const negativeB = b.startsWith("-");
  if (negativeA && negativeB) {
    return compareMagnitudes(b.slice(1), a.slice(1));
  }
  if (negativeA || negativeB) {
    return negativeA ? -1 : 1;
  }
  return compareMagnitudes(a, b);
}

function compareMagnitudes(a: string, b: string): number {
  const [wholeA = "", fractionA = ""] = a.split(".");
  const [wholeB = "", fractionB = ""] = b.split(".");
  return wholeA.length - wholeB.length || compareText(wholeA, wholeB) || compareText(fractionA, fractionB);
}

function compareText(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

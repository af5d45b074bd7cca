/** The calculator tool: what the model is told of it, the expression parser, and a call's result. */

export const CALCULATOR = {
  type: "function",
  function: {
    name: "calculator",
    description: "Evaluate an arithmetic expression.",
    parameters: {
      type: "object",
      properties: { expression: { type: "string", description: "The expression" } },
      required: ["expression"],
    },
  },
};

/** The value of an expression of digits, + - * / ( ) and the decimal point. Throws on anything else. */
export function calculate(expression) {
  if (expression.length > 200) throw new Error("the expression is too long");
  const tokens = expression.match(/\d+\.?\d*|\.\d+|[-+*/()]|\S/g) ?? [];
  let at = 0;
  const next = (...wanted) => (wanted.includes(tokens[at]) ? tokens[at++] : null);

  function atom() {
    if (next("-")) return -atom();
    if (next("+")) return atom();
    if (next("(")) {
      const value = sum();
      if (!next(")")) throw new Error("a closing parenthesis is missing");
      return value;
    }
    const token = tokens[at++];
    if (!/^[\d.]+$/.test(token ?? "")) throw new Error(token ? `unexpected ${token}` : "the expression is incomplete");
    return Number(token);
  }
  function product() {
    let value = atom();
    for (let sign; (sign = next("*", "/")); ) {
      const right = atom();
      if (sign === "/" && right === 0) throw new Error("division by zero");
      value = sign === "*" ? value * right : value / right;
    }
    return value;
  }
  function sum() {
    let value = product();
    for (let sign; (sign = next("+", "-")); ) value += sign === "+" ? product() : -product();
    return value;
  }

  const value = sum();
  if (at < tokens.length) throw new Error(`unexpected ${tokens[at]}`);
  if (!(Math.abs(value) <= Number.MAX_SAFE_INTEGER)) throw new Error("the result is too large");
  return Number.isInteger(value) ? value : Number(value.toPrecision(12));
}

/** The tool message that answers one call; an error is told to the model in words. */
export function toolResult(call) {
  let content;
  try {
    if (call.function.name !== "calculator") throw new Error(`there is no tool named ${call.function.name}`);
    content = String(calculate(String(JSON.parse(call.function.arguments).expression)));
  } catch (error) {
    content = `error: ${error.message}`;
  }
  return { role: "tool", tool_call_id: call.id, name: call.function.name, content };
}

/* Ghost text by `tsm-complete --loop`: a line of JSON with the text before the cursor, a line with its completions. */

const { spawn } = require("node:child_process");
const { createInterface } = require("node:readline");
const vscode = require("vscode");

function activate(context) {
  const settings = vscode.workspace.getConfiguration("tsm");
  const [command, ...args] = settings.get("command");
  const child = spawn(command, [...args, "--loop", "--to", "line"], { stdio: ["pipe", "pipe", "inherit"] });
  const waiting = []; // for the answers, in the order of the questions
  createInterface(child.stdout).on("line", (line) => waiting.shift()(JSON.parse(line).completions));
  const ended = (error) => {
    for (const resolve of waiting.splice(0)) resolve([]);
    child.gone = true;
    if (error) vscode.window.showErrorMessage(`${command}: ${error.message}`);
  };
  child.on("error", ended);
  child.on("close", () => ended());
  child.stdin.on("error", () => {}); // it has ended, which "close" tells

  const provideInlineCompletionItems = async (document, position) => {
    if (child.gone || position.character < document.lineAt(position.line).text.length) return [];
    const text = document.getText(new vscode.Range(new vscode.Position(0, 0), position));
    const completions = await new Promise((resolve) => {
      waiting.push(resolve);
      child.stdin.write(`${JSON.stringify(text)}\n`);
    });
    return completions
      .filter(({ replaced }) => !replaced) // VS Code shows no ghost text that replaces what stands there
      .map((one) => new vscode.InlineCompletionItem(one.text, new vscode.Range(position, position)));
  };
  const provider = vscode.languages.registerInlineCompletionItemProvider(settings.get("languages"), { provideInlineCompletionItems });
  context.subscriptions.push(provider, { dispose: () => child.kill() });
}

module.exports = { activate };

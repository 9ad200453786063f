// A tree of turns out of a stored conversation: the server keeps a flat list of replies, each of which names the one
// before it. A question that was edited stands beside its earlier wording; an answer that was written again, within its turn.

const known = (vote) => (vote && !vote.withdrawn ? { ...vote, reasons: vote.reasons ?? [] } : null);

function answerOf(reply) {
  return {
    id: reply.id,
    text: reply.text,
    html: reply.html ?? null,
    state: reply.state,
    finishReason: reply.finish_reason,
    policy: reply.policy_version,
    vote: known(reply.vote),
    error: null,
  };
}

const question = (reply) => reply.messages.findLast((message) => message.role === "user")?.content ?? "";

/** Where a conversation begins. `next` are the wordings of what follows, `open` the one that is shown. */
export const newRoot = () => ({ next: [], open: 0 });

/** Puts a question after `parent` (a turn, or the root), and shows it. */
export function addTurn(parent, user) {
  const turn = { user, answers: [], shown: 0, comparison: null, parent, next: [], open: 0 };
  parent.open = parent.next.push(turn) - 1;
  return turn;
}

/** The turns that are shown, from the first to the last. */
export function pathOf(root) {
  const path = [];
  for (let turn = root.next[root.open]; turn; turn = turn.next[turn.open]) path.push(turn);
  return path;
}

/** The root of the conversation's tree. `replies` are oldest first; what is shown leads to the newest. */
export function treeOf({ replies, comparisons = [] }) {
  const root = newRoot();
  const turnOf = new Map(); // the id of a reply or a comparison -> its turn
  const pairs = new Map(comparisons.map((comparison) => [comparison.id, comparison]));
  const whole = replies.filter((reply) => !reply.comparison_id || isPair(reply, replies));
  for (const reply of whole) {
    const said = question(reply);
    const parent = turnOf.get(reply.parent_id) ?? root;
    const again = turnOf.get(reply.comparison_id ?? reply.regenerate_of);
    // The same question in the same place: it was asked again after it had failed.
    const same = reply.comparison_id ? null : parent.next.find((turn) => !turn.comparison && turn.user === said);
    const turn = again ?? same ?? addTurn(parent, said);
    if (reply.comparison_id) {
      const pair = pairs.get(reply.comparison_id) ?? {};
      turn.comparison ??= { id: reply.comparison_id, vote: known(pair.vote), revealed: pair.revealed ?? null, error: null };
      turn.comparison[reply.side] = answerOf(reply);
      turnOf.set(reply.comparison_id, turn);
    } else {
      turn.shown = turn.answers.push(answerOf(reply)) - 1;
    }
    turnOf.set(reply.id, turn);
    for (let each = turn; each !== root; each = each.parent) each.parent.open = each.parent.next.indexOf(each);
  }
  return root;
}

const isPair = (reply, replies) => replies.filter((other) => other.comparison_id === reply.comparison_id).length === 2;

// Turns out of a stored conversation: the server keeps a flat list of replies, the page shows a conversation.

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

/** `replies` are oldest first. A regenerated reply joins the turn of the one it answers again. */
export function turnsOf({ replies, comparisons = [] }) {
  const turns = [];
  const turnOf = new Map();
  const pairs = new Map(comparisons.map((comparison) => [comparison.id, comparison]));
  for (const reply of replies) {
    if (reply.comparison_id) {
      let turn = turnOf.get(reply.comparison_id);
      if (!turn) {
        const pair = pairs.get(reply.comparison_id) ?? {};
        turn = {
          user: question(reply),
          comparison: { id: reply.comparison_id, left: null, right: null, vote: known(pair.vote), revealed: pair.revealed ?? null, error: null },
        };
        turnOf.set(reply.comparison_id, turn);
        turns.push(turn);
      }
      turn.comparison[reply.side] = answerOf(reply);
      continue;
    }
    let turn = turnOf.get(reply.regenerate_of);
    if (!turn) {
      turn = { user: question(reply), answers: [], shown: 0 };
      turns.push(turn);
    }
    turn.answers.push(answerOf(reply));
    turn.shown = turn.answers.length - 1;
    turnOf.set(reply.id, turn);
  }
  return turns.filter((turn) => !turn.comparison || (turn.comparison.left && turn.comparison.right));
}

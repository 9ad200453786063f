// The one place where HTML enters the page: replies that the server has rendered and cleaned (server/markdown.py).

const named = { createHTML: (html) => html };
/** The browser refuses HTML from anywhere else: the content security policy asks for trusted types, and names this one. */
const policy = globalThis.trustedTypes?.createPolicy("kudos", named) ?? named;

/** The nodes of a reply's HTML. They are parsed in a document of their own, where nothing runs and nothing loads. */
export function nodesOf(html) {
  const { body } = new DOMParser().parseFromString(policy.createHTML(html), "text/html");
  const fragment = document.createDocumentFragment();
  while (body.firstChild) fragment.append(body.firstChild);
  return fragment;
}

// What the search shows first: words of the site's index, then guides and notebooks by title and text, then the API.
var Scorer = {
  score: ([page, title, anchor, descr, score, file, kind]) => {
    if (kind === "index") return 1000 + score;
    if (page.startsWith("api")) return score - 40;
    return score + (/guides\/|tutorial/.test(page) ? 2 : 0);
  },
  objNameMatch: 11, objPartialMatch: 6, objPrio: { 0: 15, 1: 5, 2: -5 }, objPrioDefault: 0,
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
};

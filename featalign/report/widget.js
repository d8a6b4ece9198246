// The same browser in a notebook.
export default {
  render({ model, el }) {
    const root = document.createElement("div");
    el.append(root);
    featureBrowser(root, model.get("content"));
  },
};

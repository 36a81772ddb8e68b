// Draws the API reference from this server's own description of itself.

/* global SwaggerUIBundle */
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#reference",
  deepLinking: true,
  // Null keeps Swagger from asking a public validator about the description.
  validatorUrl: null,
});

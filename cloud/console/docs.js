// The page behind /docs. A file of its own, because the page allows no inline script.
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  persistAuthorization: false,
  validatorUrl: null, // Swagger's default sends the document to a server on the internet
  tryItOutEnabled: true,
});
